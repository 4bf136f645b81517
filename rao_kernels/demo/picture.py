"""Draw the demo's picture from its JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _plot
from .._plot import Label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"before": "#c4c4c4", "RAO": _plot.OURS, "DPO": _plot.MUTED[0]}
COST_COLOURS = {"rao_kernels": _plot.OURS, "plain torch": _plot.MUTED[0]}
MIB = 2**20


def draw(source: Path, target: Path) -> None:
    """Draw the figures of a ``demo.json`` as a PNG; implicit rewards where the file has them."""
    content = json.loads(source.read_text())
    panels = {
        "rewards": _rewards,
        "runs": _logps,
        "implicit_rewards": _implicit,
        "loss_cost": _costs,
    }
    shown = [panel for name, panel in panels.items() if name in content]
    rows = -(-len(shown) // 2)
    figure = _plot.new_figure(10, 3.4 * rows, "demo")
    grid = figure.add_gridspec(rows, 2)
    for number, panel in enumerate(shown):
        alone = number == len(shown) - 1 and number % 2 == 0  # in its row, which it fills
        panel(figure.add_subplot(grid[number // 2, :] if alone else grid[number]), content)
    _plot.save(figure, target)


def _rewards(axes: Axes, content: Mapping[str, Any]) -> None:
    for name, value in content["rewards"].items():
        mean, error = value["mean"], value["standard_error"]
        bar = axes.bar(name, mean, yerr=error, color=COLOURS[name], capsize=5, ecolor=_plot.INK)
        axes.bar_label(bar, [f"{mean:.2f}"], padding=4, fontsize=_plot.SIZE, color=_plot.INK)
    axes.set_ylim(0, 1)
    _plot.describe(axes, "Mean reward of fresh held-out answers")
    axes.grid(visible=False, axis="x")


def _logps(axes: Axes, content: Mapping[str, Any]) -> None:
    """Draw the log-probs of the start model's held-out answers over the run."""
    ends = []
    for name, run in content["runs"].items():
        for metric, (steps, values) in run["held_out_pairs"].items():
            kind = {"logps/chosen": "preferred", "logps/rejected": "rejected"}[metric]
            style = "o-" if kind == "preferred" else "o--"
            axes.plot(steps, values, style, color=COLOURS[name], markersize=4, linewidth=2)
            ends.append(Label(steps[-1], values[-1], f"{name}, {kind}", COLOURS[name]))
    _plot.describe(axes, "Log-prob of held-out answers, nats", "step")
    _plot.label_ends(axes, ends)


def _implicit(axes: Axes, content: Mapping[str, Any]) -> None:
    """Draw implicit against explicit rewards, beside the line where both are equal."""
    ends = [Label(1, 1, "equal", "#777777")]
    for name, seen in content["implicit_rewards"].items():
        levels, means, errors = seen["reward"], seen["mean"], seen["standard_error"]
        axes.errorbar(levels, means, errors, fmt="o-", capsize=3, color=COLOURS[name], linewidth=2)
        ends.append(Label(levels[-1], means[-1], name, COLOURS[name], bold=True))
    axes.plot([0, 1], [0, 1], ":", color="#777777")
    title = "Reward the model implies, held-out answers"
    _plot.describe(axes, title, "reward of the rule", "implicit reward")
    _plot.label_ends(axes, ends)


def _costs(axes: Axes, content: Mapping[str, Any]) -> None:
    """Draw peak memory and time as shares of plain torch's."""
    costs = {name: content["loss_cost"][name] for name in COST_COLOURS}
    plain = costs["plain torch"]
    for offset, (name, cost) in zip((0.2, -0.2), costs.items(), strict=True):
        shares = [cost[key] / plain[key] for key in ("peak_bytes", "seconds")]
        positions = [offset, 1 + offset]
        bars = axes.barh(positions, shares, height=0.36, color=COST_COLOURS[name])
        labels = [f"{cost['peak_bytes'] / MIB:.0f} MiB", f"{cost['seconds'] * 1e3:.0f} ms"]
        labels = [f"{name}: {label}" for label in labels]
        axes.bar_label(bars, labels, padding=4, fontsize=_plot.SIZE, color=_plot.INK)
    axes.set_xlim(0, 1.6)
    _plot.describe(axes, "Cost of the loss, forward and backward")
    axes.set_yticks([0, 1], ["peak memory", "time"])
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
