"""Every example runs, and prints a finite loss."""

from __future__ import annotations

import math
import re
import runpy
import sys
from pathlib import Path

import pytest

from .train.tiny import save_tiny

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
# Those that take a model; the test's own stands in for the one of the hub.
WITH_MODEL = ("huggingface_quickstart", "rao_vs_dpo")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


def run(path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    runpy.run_path(str(path))["main"]()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(
    path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if path.stem.startswith("trl_"):
        pytest.importorskip("trl")
    run(path, ["--model", str(model)] if path.stem in WITH_MODEL else [], monkeypatch)
    found = re.search(r"loss\W+?(-?\d[\d.e-]*)", capsys.readouterr().out)
    assert found
    assert math.isfinite(float(found[1].rstrip(".")))


def test_examples_are_short() -> None:
    assert [path.name for path in EXAMPLES if len(path.read_text().splitlines()) > 80] == []


def test_quickstart_reduces_the_loss(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(path for path in EXAMPLES if path.stem == "huggingface_quickstart")
    run(path, ["--model", str(model), "--steps", "4"], monkeypatch)
    losses = [float(x) for x in re.findall(r"step \d: loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_rao_and_dpo_both_learn_the_order(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out prompts: nothing is ranked before training, and the margins are there after it."""
    path = next(path for path in EXAMPLES if path.stem == "rao_vs_dpo")
    run(path, ["--model", str(model)], monkeypatch)
    line = re.search(r"best minus worst +(\S+) +(\S+) +(\S+)", capsys.readouterr().out)
    assert line is not None
    before, rao, dpo = map(float, line.groups())
    assert before == 0.0
    assert rao > 0.0
    assert dpo > 0.0
