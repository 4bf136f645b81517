"""``bench plot``: the README's picture, and one of how time and memory grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import _plot
from .._plot import Label
from .cases import BOTH, LOSSES, label
from .providers.ours import DEFAULT, SPARSE
from .readme import NAMES
from .record import Result, limits_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 2**20
TIME = "time, multiples of the bare GEMMs"
Value = Callable[[Result], float]
# The README's picture shows no variant of ours but these.
COLOURS = {DEFAULT: _plot.OURS, SPARSE: _plot.OURS_LIGHT} | dict(
    zip(NAMES, _plot.MUTED * 2, strict=False)
)
MARKERS = {DEFAULT: "o", SPARSE: "D"}


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write ``readme.png`` and ``benchmarks.png`` to the folder; one without results says so."""
    good = [one for one in results if one["direction"] == BOTH and "median_s" in one]
    shown = [one for one in good if one["status"] == "ok" and one["provider"] in COLOURS]
    paths = [folder / "readme.png", folder / "benchmarks.png"]
    _draw_readme(shown, paths[0])
    _draw_growth(shown, paths[1])
    return paths


def _draw_readme(results: Sequence[Result], path: Path) -> None:
    """Draw time against error, and extra memory, of the log-probs of the first case."""
    known = [one for one in results if "logp_error" in one]
    first = [one for one in known if _title(one) == _title(known[0])]
    figure = _plot.new_figure(8.0, 3.5, "bench")
    speed, memory = figure.subplots(1, 2, width_ratios=[1.5, 1])
    _scatter(speed, first)
    _bars(memory, [one for one in first if one.get("peak_extra_bytes", 0) > 0])
    if first:
        text = f"{_title(first[0])}: {first[0]['N']} tokens, both gradients; {_machine(first[0])}"
        figure.supxlabel(text, fontsize=_plot.SIZE - 1, color="#6b6b6b")
    _plot.save(figure, path, dpi=200)


def _draw_growth(results: Sequence[Result], path: Path) -> None:
    """Draw losses on real text, memory and time against N, and time against V."""
    figure = _plot.new_figure(11.0, 8.0, "bench")
    losses, memory, rows, vocabulary = figure.subplots(2, 2).flat
    _losses(losses, _suite(results, "real"))
    sized = [one for one in _suite(results, "rows") if one["provider"] != SPARSE]
    taking = [one for one in sized if one.get("peak_extra_bytes", 0) > 0]
    _lines(memory, taking, "N", lambda one: one["peak_extra_bytes"] / MIB)
    _plot.describe(memory, "Extra memory against rows", _x("rows N", taking, "V"), "MiB")
    _lines(rows, sized, "N", lambda one: one["ratio_to_gemms"])
    _unit(rows)
    _plot.describe(rows, "Time against rows", _x("rows N", sized, "V"), TIME)
    sized = [one for one in _suite(results, "vocabulary") if one["provider"] != SPARSE]
    _lines(vocabulary, sized, "V", lambda one: one["ratio_to_gemms"])
    _unit(vocabulary)
    x = _x("vocabulary size V", sized, "N")
    _plot.describe(vocabulary, "Time against vocabulary size", x, TIME)
    if results:
        note = f"{_machine(results[0])}; forward and both gradients"
        figure.supxlabel(note, fontsize=_plot.SIZE - 1, color="#6b6b6b")
    _plot.save(figure, path, dpi=120)


def _suite(results: Sequence[Result], name: str) -> list[Result]:
    return [one for one in results if one.get("suite") == name]


def _title(result: Result) -> str:
    return label(result["case"], result["dtype"], result["direction"])


def _machine(result: Result) -> str:
    limits = limits_of(result)
    return f"{result['device']}, {limits or result['isa']}, torch {result['torch']}"


def _x(name: str, results: Sequence[Result], other: str) -> str:
    """Return the name of the axis with the sizes that the results of the panel share."""
    if not results:
        return name
    return f"{name} (random logits, D={results[0]['D']}, {other}={results[0][other]:,})"


def _name(provider: str) -> str:
    names = {DEFAULT: "rao_kernels", SPARSE: "rao_kernels, sparse"}
    return names.get(provider) or NAMES[provider]


def _label(provider: str, x: float, y: float) -> Label:
    return Label(x, y, _name(provider), COLOURS[provider], bold=provider in MARKERS)


def _scatter(panel: Axes, results: Sequence[Result]) -> None:
    for one in results:
        marker = MARKERS.get(one["provider"], "o")
        size = 70 if one["provider"] in MARKERS else 40
        x, y, colour = one["ratio_to_gemms"], one["logp_error"], COLOURS[one["provider"]]
        panel.scatter(x, y, s=size, color=colour, marker=marker, zorder=3)
    if results:
        panel.set(xscale="log", yscale="log")
        panel.margins(0.13, 0.22)
        panel.axvline(1.0, color="#b5b5b5", linestyle=":", zorder=1)
        _plot.plain_ticks(panel, "x", (0.5, 1, 2, 5, 10, 20))
    _plot.describe(panel, "Time and error (lower left is better)", TIME, "error of log-probs, nats")
    labels = [_label(one["provider"], one["ratio_to_gemms"], one["logp_error"]) for one in results]
    short = [replace(one, text=one.text.removeprefix("rao_kernels, ")) for one in labels]
    _plot.label_points(panel, short)


def _bars(panel: Axes, results: Sequence[Result]) -> None:
    rising = sorted(results, key=lambda one: -one["peak_extra_bytes"])
    for number, one in enumerate(rising):
        size, ours = one["peak_extra_bytes"] / MIB, one["provider"] in MARKERS
        panel.barh(number, size, color=COLOURS[one["provider"]], height=0.7)
        weight = "bold" if ours else "normal"
        panel.annotate(
            f"{size:,.0f}",
            (size, number),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=_plot.SIZE - 0.5,
            fontweight=weight,
            color=_plot.INK,
        )
    panel.margins(x=0.16)
    _plot.describe(panel, "Extra memory, MiB")
    panel.set_yticks(range(len(rising)), [_name(one["provider"]) for one in rising])
    panel.set_xticks([])
    panel.grid(visible=False)
    panel.spines["bottom"].set_visible(False)


def _losses(panel: Axes, results: Sequence[Result]) -> None:
    """Draw a line for each provider over the losses, in the order of `LOSSES`."""
    order = [name for name in LOSSES if any(one["task"] == name for one in results)]
    numbered = [{**one, "loss": order.index(one["task"])} for one in results]
    _lines(panel, numbered, "loss", lambda one: one["ratio_to_gemms"], categories=True)
    _unit(panel)
    _plot.describe(panel, "Losses on real text, forward and backward", "", TIME)
    if order:
        panel.set_xticks(range(len(order)), [LOSSES[name] for name in order])


def _lines(
    panel: Axes, results: Sequence[Result], x: str, y: Value, *, categories: bool = False
) -> None:
    """Draw a line for each provider, labelled at its end."""
    ends = []
    for name, colour in COLOURS.items():
        points = sorted((one[x], y(one)) for one in results if one["provider"] == name)
        if points:
            ours = name in MARKERS
            panel.plot(
                *zip(*points, strict=True),
                color=colour,
                marker=MARKERS.get(name, "."),
                markersize=5 if ours else 4,
                linewidth=2.4 if ours else 1.2,
                zorder=4 if ours else 3,
            )
            ends.append(_label(name, *points[-1]))
    if results:
        panel.set_yscale("log")
        if not categories:
            panel.set_xscale("log", base=2)
            _plot.plain_ticks(panel, "x", sorted({one[x] for one in results}))
        _plot.label_ends(panel, ends)


def _unit(panel: Axes) -> None:
    """Draw a line at the time of the bare GEMMs, and ticks in multiples of it."""
    if panel.has_data():
        panel.axhline(1.0, color="#b5b5b5", linestyle=":", zorder=1)
        low, high = panel.get_ylim()
        ticks = [one for one in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 50) if low < one < high]
        _plot.plain_ticks(panel, "y", ticks)
