"""The picture of an evaluation: metrics of the loss, log-ratios and rewards of samples, wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import _plot
from .estimates import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BARS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


def draw_evaluation(
    path: Path,
    *,
    metrics: Mapping[str, float],
    log_ratios: Sequence[float],
    rewards: Mapping[str, Sequence[float]],
    comparison: Comparison | None,
) -> None:
    """Draw what there is into a PNG.

    Args:
        path: of the picture.
        metrics: of the loss, by name.
        log_ratios: of the samples to the reference, in nats.
        rewards: mean reward of each prompt, by model.
        comparison: of the two models.
    """
    bars = {name: metrics[name] for name in (*_BARS, "loss") if name in metrics}
    panels = [bool(bars), bool(log_ratios), bool(rewards), comparison is not None]
    count = max(sum(panels), 1)
    figure = _plot.new_figure(4.6 * count, 3.2, "train")
    axes = iter([figure.add_subplot(1, count, number + 1) for number in range(count)])
    if bars:
        _draw_bars(next(axes), "held-out metrics", bars)
    if log_ratios:
        _draw_counts(next(axes), "log-ratio of samples to the reference", {"": log_ratios}, "nats")
    if rewards:
        _draw_counts(next(axes), "mean reward of a prompt", rewards, "reward")
    if comparison is not None:
        shares = {
            "wins": comparison.wins,
            "ties": comparison.ties,
            "losses": comparison.losses,
        }
        _draw_bars(next(axes), "prompts", shares)
    _plot.save(figure, path)


def _draw_bars(axes: Axes, title: str, values: Mapping[str, float]) -> None:
    axes.barh(list(values), list(values.values()), color=_plot.OURS, height=0.6)
    axes.invert_yaxis()
    for place, value in enumerate(values.values()):
        axes.annotate(
            f"{value:.4g}",
            (max(value, 0), place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=_plot.SIZE,
            color=_plot.INK,
        )
    axes.margins(x=0.2)
    _plot.describe(axes, title)


def _draw_counts(axes: Axes, title: str, values: Mapping[str, Sequence[float]], unit: str) -> None:
    """Draw histograms over the same bins, one for each model."""
    axes.hist(
        [list(one) for one in values.values()],
        bins=20,
        label=list(values),
        color=[_plot.OURS, _plot.MUTED[0]][: len(values)],
    )
    if len(values) > 1:
        axes.legend(fontsize=_plot.SIZE, frameon=False)
    _plot.describe(axes, title, unit, "prompts" if unit == "reward" else "samples")
