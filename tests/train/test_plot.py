"""The picture of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rao_kernels import _plot
from rao_kernels.train.plot import plot_run

PAIRS = {"rewards/margins": 0.5, "rewards/chosen": 0.2, "rewards/rejected": -0.3}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures, instead of files."""
    figures: list[Any] = []
    monkeypatch.setattr(_plot, "save", lambda figure, path: figures.append(figure))
    return figures


def history(evaluated: bool) -> list[dict[str, float]]:
    entries: list[dict[str, float]] = []
    for step in (1, 2, 3):
        entries.append({"step": step, "loss": 1 / step, "grad_norm": 1.0, **PAIRS})
        if evaluated:
            entries.append({"step": step, **{f"eval_{name}": 0.1 * step for name in PAIRS}})
    return [*entries, {"step": 3, "train_runtime": 1.0}]


def test_learning_comes_first(drawn: list[Any]) -> None:
    """A panel for each question that the history can answer, loss and margin before the rest."""
    plot_run(history(evaluated=True), Path())
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert titles[0] == "Loss" and titles[1].startswith("Reward margin")
    assert titles[2:] == ["Implicit reward", "Gradient norm"]


def test_evaluation_stands_out(drawn: list[Any]) -> None:
    plot_run(history(evaluated=True), Path())
    plot_run(history(evaluated=False), Path())
    thin, thick = (line for line in drawn[0].axes[1].lines if len(line.get_xdata()))
    assert thin.get_linewidth() < thick.get_linewidth() and thin.get_alpha() < 1
    assert [*thick.get_ydata()] == pytest.approx([0.1, 0.2, 0.3])
    assert "thick" in drawn[0].get_supxlabel() and not drawn[1].get_supxlabel()
    alone = next(line for line in drawn[1].axes[1].lines if len(line.get_xdata()))
    assert alone.get_alpha() == 1


def test_two_curves_are_named_where_they_end(drawn: list[Any]) -> None:
    plot_run(history(evaluated=False), Path())
    (rewards,) = (one for one in drawn[0].axes if one.get_title(loc="left") == "Implicit reward")
    ends = {text.get_text(): text.xy for text in rewards.texts}
    assert ends == {"chosen": (3, 0.2), "rejected": (3, -0.3)}
