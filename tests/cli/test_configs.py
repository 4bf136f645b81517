"""The files of examples/configs are read by the commands that they are for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rao_kernels.cli import cache_ref, sft, train
from rao_kernels.cli.main import main
from rao_kernels.cli.options import parse_options
from tests.train.tiny import save_tiny, tiny_rows, write_jsonl

RULE = """
def correct(prompts, completions, **columns):
    return [float("a" in completion) for completion in completions]
"""

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"


def command_of(path: Path) -> str:
    """Return the command that a file names in its first line, with the file's own name."""
    found = re.match(r"# rao-kernels (\S+) --config examples/configs/(\S+)\n", path.read_text())
    assert found is not None and found[2] == path.name
    return found[1]


NAMES = [path.stem for path in sorted(CONFIGS.glob("*.yaml"))]


def test_there_are_files() -> None:
    assert {"sft", "reward-model", "rao", "dpo", "online"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of its model and data, tiny ones."""
    path = CONFIGS / f"{name}.yaml"
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model")
    # So many that a share of 5 % holds out some.
    rows = tiny_rows(60, responses=(1,) if name == "sft" else (2, 3))
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    given = ["--model", "model", "--data", str(data), "--use_cpu"]
    if name == "online":
        (tmp_path / "rules.py").write_text(RULE)
        given += ["--rounds", "1", "--max_new_tokens", "4"]
    else:
        given += ["--max_steps", "1"]
    if "eval_data" in path.read_text():
        given += ["--eval_data", str(data)]
    assert main([command_of(path), "--config", str(path), *given, "--disable_tqdm", "true"]) == 0
    assert list((tmp_path / "out" / name).glob("*.safetensors"))


def test_what_is_in_a_file_is_taken() -> None:
    argv = ["--config", str(CONFIGS / "sft.yaml")]
    model, data, *_, config = parse_options("", sft.TYPES, argv, without=sft.NOT_OF_SFT)
    assert (model.model, data.data) == ("HuggingFaceTB/SmolLM2-135M", ["sft.jsonl"])
    assert (config.loss, config.gradient_accumulation_steps) == ("sft", 4)
    *_, config = parse_options("", train.TYPES, ["--config", str(CONFIGS / "dpo.yaml")])
    assert (config.loss, config.beta, config.learning_rate) == ("sigmoid", 0.1, 1e-5)


def test_one_file_serves_train_and_cache_ref() -> None:
    argv = ["--config", str(CONFIGS / "rao.yaml"), "--ref_cache_dir", "cache"]
    *_, trained = parse_options("", train.TYPES, argv)
    *_, cached = parse_options("", cache_ref.TYPES, argv)
    assert cached.to_dict() == trained.to_dict()
