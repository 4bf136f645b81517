"""The documentation: its snippets run, every public name has its place, and the site builds."""

from __future__ import annotations

import ast
import html
import importlib
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rao_kernels
from rao_kernels import errors
from rao_kernels.cli.options import parse_options
from rao_kernels.cli.train import TYPES
from rao_kernels.data import DataReport, load_records
from rao_kernels.data.shapes import SHAPES

from .train.tiny import save_tiny, tiny_model, tiny_rows, tiny_tokenizer

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PARTS = "losses hf train data refcache generation rewards"
PACKAGES = ("rao_kernels", *(f"rao_kernels.{name}" for name in PARTS.split()))


def blocks(page: Path, language: str = "python") -> list[str]:
    """The code blocks of a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a snippet; "model" in it is a tiny model, "rows.jsonl" data."""
    save_tiny(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(blocks(DOCS / "quickstart.md", "json")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "<docs>", "exec"), names)
    return names


def test_quickstart_runs_from_model_to_trained_model(folder: Path) -> None:
    code = "\n".join(blocks(DOCS / "quickstart.md"))
    assert MODEL in code
    names = run(code.replace(MODEL, str(folder / "model")), {"__name__": "quickstart"})
    logits = names["model"](names["tokenizer"]("the river is wide", return_tensors="pt").input_ids)
    expected = logits.logits.log_softmax(-1)[:, :-1].gather(-1, names["targets"][:, :-1, None])
    # The model has not moved: the page makes no step with it before the trainer loads its own.
    torch.testing.assert_close(names["token_logps"][:, :-1], expected[..., 0])
    assert names["output"].loss.isfinite()
    assert names["trainer"].state.global_step == 1
    assert (folder / "out" / "model.safetensors").is_file()


def batch_of_pairs() -> dict[str, Any]:
    """What the snippets on hidden states take as given: two pairs."""
    ids = torch.randint(1, 83, (4, 9))
    ids[1, :4], ids[3, :4] = ids[0, :4], ids[2, :4]
    answers = torch.arange(9).expand(4, 9) >= 4
    rows = torch.randn(4, 9, 16)
    return {
        "torch": torch,
        "input_ids": ids,
        "completion_mask": answers,
        "attention_mask": torch.ones_like(ids),
        "groups": torch.tensor([0, 0, 1, 1]),
        "preferred": torch.tensor([True, False, False, True]),
        "rewards": torch.tensor([1.0, 0.0, 0.2, 0.7]),
        "hidden": rows.requires_grad_(),
        "weight": torch.randn(83, 16, requires_grad=True),
        "ref_hidden": torch.randn(4, 9, 16),
        "ref_weight": torch.randn(83, 16),
    }


def test_snippets_of_moving_over_run(folder: Path) -> None:
    after = [one for one in blocks(DOCS / "howto" / "move-over.md") if one.startswith("# after")]
    before = [one for one in blocks(DOCS / "howto" / "move-over.md") if one.startswith("# before")]
    assert len(after) == len(before) == 4
    for code in after:
        if "trl" in code:
            trl = pytest.importorskip("rao_kernels.integrations.trl")
            run(code, {})
            trl.disable()
        elif "RAOTrainer" in code:
            pairs = [
                {"prompt": row["prompt"], "chosen": "yes", "rejected": "no"} for row in tiny_rows(3)
            ]
            given = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "pairs": pairs}
            assert run(code, given)["trainer"].spec.name == "sigmoid"
        elif "SequenceBatch" in code:
            names = run(code, batch_of_pairs())
            assert names["hidden"].grad.abs().sum() > 0
        else:
            given = batch_of_pairs() | {"targets": torch.randint(83, (4, 9))}
            names = run(code, given)
            logits = names["hidden"] @ names["weight"].T
            expected = logits.log_softmax(-1).gather(-1, names["targets"][..., None])[..., 0]
            torch.testing.assert_close(names["logps"], expected)


def test_snippets_on_rewards_and_lora_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("\n".join(blocks(DOCS / "howto" / "rewards.md")), {})
    assert '"rewards": [1.0, 0.0]' in capsys.readouterr().out
    code = "\n".join(blocks(DOCS / "howto" / "generate.md"))
    names = run(code, {"name": str(folder / "model")})
    assert [len(group) for group in names["samples"]] == [2]
    pytest.importorskip("peft")
    code = "\n".join(blocks(DOCS / "howto" / "lora.md"))
    trainer = run(code, {"name": str(folder / "model")})["trainer"]
    assert "lora_A" in " ".join(name for name, _ in trainer.model.named_parameters())


def test_records_shown_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shape of the table has an example, in the table's order."""
    (found,) = blocks(DOCS / "data.md", "json")
    (tmp_path / "shown.jsonl").write_text(found)
    report = DataReport()
    records = load_records(str(tmp_path / "shown.jsonl"), report=report)
    assert len(records) == len(found.splitlines()) == 25
    assert all("river" in str([one.prompt, one.responses]) for one in records)
    table = re.findall(r"^\| `(\w+)`.*? \| .*? \| .*? \|$", (DOCS / "data.md").read_text(), re.M)
    names = [shape.name for shape in SHAPES]
    assert [name for name in table if name in names] == names
    assert [*report.shapes, "prompt"] == names
    run("\n".join(blocks(DOCS / "data.md")), {})
    assert capsys.readouterr().out == "['The Nile.', 'Paris.'] [1.0, 0.0]\n"


def test_options_in_a_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (found,) = blocks(DOCS / "cli.md", "yaml")
    (tmp_path / "run.yaml").write_text(found)
    model, data, *_, config = parse_options("rao-kernels train", TYPES, ["--config", "run.yaml"])
    assert (model.model, data.data) == (MODEL, ["rows.jsonl"])
    assert (config.output_dir, config.learning_rate, config.bf16) == ("out", 2e-5, True)


def test_snippet_of_the_readme_runs() -> None:
    code = next(one for one in blocks(ROOT / "README.md") if "rk.rao_loss" in one)
    given = batch_of_pairs() | {"rk": rao_kernels}
    batch = rao_kernels.SequenceBatch.from_padded(
        given["input_ids"], given["completion_mask"], groups=given["groups"]
    )
    names = ("ref_logps", "ref_prompt_logps")
    scores = rao_kernels.sequence_and_prompt_logps(given["ref_hidden"], given["ref_weight"], batch)
    names = run(code, given | dict(zip(names, scores, strict=True)))
    assert names["weight"].grad.abs().sum() > 0


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda path: path.name)
def test_python_blocks_parse(page: Path) -> None:
    for block in blocks(page):
        ast.parse(block)


def test_every_public_name_is_on_its_page() -> None:
    public: dict[str, set[str]] = {}
    for package in PACKAGES:
        public[package] = set(importlib.import_module(package).__all__)
    public["rao_kernels.integrations.trl"] = {"enable", "disable", "status", "Status"}
    for package, names in public.items():
        page = DOCS / "api" / f"{package.split('.')[1] if '.' in package else package}.md"
        shown = re.findall(r"^\.\. (?:auto\w+|py:data):: (\w+)$", page.read_text(), re.MULTILINE)
        assert sorted(shown) == sorted(names), page.name
    assert errors.__doc__ is not None
    assert "automodule:: rao_kernels.errors" in (DOCS / "api" / "errors.md").read_text()


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", ["README.md", "AGENTS.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_front_pages_lead_somewhere(name: str) -> None:
    """The site's own links are checked as it is built."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_files_named_in_the_map_exist() -> None:
    """Paths in the first column of AGENTS.md's layout, and beside them in the third."""
    text = (ROOT / "AGENTS.md").read_text().partition("## Layout")[2].partition("## Rules")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) ?\|$", text, re.MULTILINE)
    assert len(rows) > 10
    for places, _, starts in rows:
        folders = re.findall(r"`([\w/.]+)`", places)
        base = ROOT / folders[0]
        if base.is_dir():
            for start in re.findall(r"`([\w/.]+)`", starts):
                candidates = [base / start, base.parent / start]
                assert any(one.exists() for one in candidates), (places, start)
        else:
            assert base.exists(), places


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    """As `make docs` does it."""
    pytest.importorskip("sphinx")
    makefile = (ROOT / "Makefile").read_text()
    command = re.search(r"-m sphinx (.*) -d \S+ docs build/docs", makefile)
    assert command is not None
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", *command[1].split()),
            *("-d", str(tmp_path / "trees"), "docs", str(tmp_path / "site")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api" / "rao_kernels.html").read_text()
    # Types, options and the link from a docstring to another name.
    assert 'id="rao_kernels.EngineOptions.grad_tolerance"' in page
    assert 'href="#rao_kernels.TokenStats"' in page
    # The types that users pass, not the text that the command line's parser hands over.
    settings = re.sub(r"<[^>]+>", "", (tmp_path / "site" / "api" / "train.html").read_text())
    assert "log_z0: float | Literal['auto', 'logmeanexp']" in html.unescape(settings)
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(\w+://[^"]+)"', page)
    assert loaded == [], "the site is to work offline"


def test_the_page_of_systems_is_that_of_the_results() -> None:
    page = ROOT / "docs" / "systems.md"
    module = runpy.run_path(str(ROOT / "docs" / "generate_systems.py"))
    assert module["filled"](page.read_text(encoding="utf-8")) == page.read_text(encoding="utf-8")


def test_commands_of_systems_have_options_that_work() -> None:
    systems = runpy.run_path(str(ROOT / "bench" / "systems.py"))
    commands = [system.command for system in systems["SYSTEMS"]]
    commands += [one for _, several in systems["FILES"].values() for one in several]
    for command in commands:
        name, *words = shlex.split(command)
        module = importlib.import_module(f"rao_kernels.cli.{name.replace('-', '_')}")
        parse_options(name, module.TYPES, words)
