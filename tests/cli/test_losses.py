"""`rao-kernels losses`, and docs/losses.md, which it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rao_kernels.cli.losses import _WORDS, markdown
from rao_kernels.cli.main import main
from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES
from rao_kernels.train.config import RAOConfig, check_runnable

PAGE = Path(__file__).parents[2] / "docs" / "losses.md"


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    starts = [line.split()[0] for line in lines[1:] if not line.startswith(" ")]
    assert starts == list(LOSSES)
    text = " ".join(" ".join(lines).split())
    assert "grpo sequences rewards or advantages, old log-probs [groups, reference per" in text
    assert "kto sequences labels, reference, mismatched pairs" in text
    assert "ppo tokens advantages, values, returns" in text
    assert "beta=0.1, log_z0=50.0" in text
    for spec in LOSSES.values():
        assert spec.paper in text


def test_what_train_refuses_is_marked(tmp_path: Path) -> None:
    for name, spec in LOSSES.items():
        marked = "by `rao-kernels online`; records" in markdown([spec])
        try:
            check_runnable(RAOConfig(output_dir=str(tmp_path), loss=name, use_cpu=True))
        except InputError:
            assert marked, name
        else:
            assert not marked, name


def test_every_input_has_a_word() -> None:
    for spec in LOSSES.values():
        assert {*spec.needs, *spec.optional} <= set(_WORDS), spec.name


@pytest.mark.parametrize("key", LOSSES)
def test_a_loss_comes_with_the_legend_of_its_formula(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["losses", key, key]) == 0
    assert capsys.readouterr().out.count("\nLegend: ") == 1


def test_losses_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "cispo", "tpo"]) == 0
    printed = capsys.readouterr().out
    assert "### `cispo`" in printed and "### `tpo`" in printed
    assert "-sg(clip(rho_t)) A_i l_t" in printed
    assert "their 5.0 is" in printed
    assert main(["losses", "cisppo"]) == 2
    assert "cispo" in capsys.readouterr().err


def test_the_page_is_in_step_with_the_table() -> None:
    """If this fails, run docs/generate_losses.py."""
    assert PAGE.read_text(encoding="utf-8") == markdown(LOSSES.values())
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert max(len(line) for line in lines if not line.startswith("| ")) <= 100


def index() -> dict[str, list[str]]:
    """Return the cells of the index table, by key."""
    lines = PAGE.read_text(encoding="utf-8").split("## How to read", 1)[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| [`")]
    return {re.findall(r"`(\w+)`", cells[0])[0]: cells for cells in rows}


def test_the_index_has_each_loss_once_and_links_to_its_entry() -> None:
    rows, page = index(), PAGE.read_text(encoding="utf-8")
    assert list(rows) == list(LOSSES)
    headings = re.findall(r"^### (.*)$", page, re.MULTILINE)
    assert len(headings) == len(LOSSES)
    for (key, cells), heading in zip(rows.items(), headings, strict=True):
        assert heading.startswith(f"`{key}`")
        anchor = re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")
        assert f"](#{anchor})" in cells[0]


def test_the_index_answers_what_a_loss_needs(tmp_path: Path) -> None:
    rows = index()
    assert rows["sigmoid"][0].endswith("(DPO)")
    assert "dpo" in rows["sigmoid"][1].split(", ")
    assert rows["sigmoid"][3:5] == ["pair", "pairs, reference"]
    assert "Rafailov et al. 2023" in rows["sigmoid"][5] and "2305.18290" in rows["sigmoid"][5]
    assert (rows["sigmoid"][6], rows["grpo"][6]) == ("yes", "yes")
    assert rows["ppo"][6] == "no"
    for name, spec in LOSSES.items():
        assert (rows[name][6] == "no") == ("by `rao-kernels online`; records" in markdown([spec]))
        assert rows[name][3] == spec.unit


def test_every_loss_shows_a_formula() -> None:
    for spec in LOSSES.values():
        doc = spec.terms.__doc__ or ""
        assert "``" in doc or "KL of" in doc, spec.name
