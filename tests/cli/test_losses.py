"""`rao-kernels losses`, and the page made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rao_kernels.cli.losses import _WORDS, markdown
from rao_kernels.cli.main import main
from rao_kernels.errors import NotYetError
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
        marked = "not by `rao-kernels train`" in markdown([spec])
        try:
            check_runnable(RAOConfig(output_dir=str(tmp_path), loss=name, use_cpu=True))
        except NotYetError:
            assert marked, name
        else:
            assert not marked, name


def test_every_input_has_a_word() -> None:
    for spec in LOSSES.values():
        assert {*spec.needs, *spec.optional} <= set(_WORDS), spec.name


def test_losses_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "cispo", "tpo"]) == 0
    printed = capsys.readouterr().out
    assert "### `cispo`" in printed and "### `tpo`" in printed
    assert "-sg(clip(rho_t)) A_i l_t" in printed
    assert "their 5.0 is" in printed
    assert main(["losses", "cisppo"]) == 2
    assert "cispo" in capsys.readouterr().err


def test_the_page_is_in_step_with_the_table() -> None:
    """Run docs/generate_losses.py where this fails."""
    assert PAGE.read_text(encoding="utf-8") == markdown(LOSSES.values())
    assert max(map(len, PAGE.read_text(encoding="utf-8").splitlines())) <= 100


def test_every_loss_shows_a_formula() -> None:
    for spec in LOSSES.values():
        doc = spec.terms.__doc__ or ""
        assert "``" in doc or "KL of" in doc, spec.name
