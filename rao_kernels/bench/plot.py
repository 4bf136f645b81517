"""``bench plot``: time and memory against N, speed against error, cost against V."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .cases import BOTH, DIRECTIONS
from .record import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 2**20
Value = Callable[[Result], float]
Colour = tuple[float, float, float, float]


def draw(rows: Sequence[Result], path: Path) -> None:
    """Four panels; one without rows says so."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    both = [row for row in rows if row["direction"] == BOTH and row["status"] == "ok"]
    sized, worded, known = _suite(both, "rows"), _suite(both, "vocabulary"), _headline(both)
    colours = _colours([*known, *sized, *worded])
    figure, panels = pyplot.subplots(2, 2, figsize=(13, 10), layout="constrained")
    _lines(panels[0, 0], sized, colours, "N", lambda row: row["median_s"])
    _name(panels[0, 0], f"Time, {DIRECTIONS[BOTH]}{_of(sized)}", "rows N", "seconds")
    taking = [row for row in sized if row.get("peak_extra_bytes", 0) > 0]
    _lines(panels[0, 1], taking, colours, "N", lambda row: row["peak_extra_bytes"] / MIB)
    _name(panels[0, 1], f"Extra memory{_of(taking)}", "rows N", "MiB")
    _scatter(panels[1, 0], known, colours)
    _lines(panels[1, 1], worded, colours, "V", lambda row: row["median_s"])
    _name(panels[1, 1], f"Time{_of(worded, 'N')}", "words of the vocabulary V", "seconds")
    handles = [Line2D([], [], color=c, marker="o", label=n) for n, c in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    if rows:
        first = rows[0]
        figure.suptitle(f"{first['device']}, torch {first['torch']}, commit {first['commit']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _suite(rows: Sequence[Result], name: str) -> list[Result]:
    return [row for row in rows if row.get("suite") == name]


def _headline(rows: Sequence[Result]) -> list[Result]:
    """Rows with errors of the case that stands first."""
    known = [row for row in rows if "dhidden_error" in row and "logp_error" in row]
    return [row for row in known if row["case"] == known[0]["case"] and _same_dtype(row, known[0])]


def _same_dtype(a: Result, b: Result) -> bool:
    return bool(a["dtype"] == b["dtype"])


def _colours(rows: Sequence[Result]) -> dict[str, Colour]:
    from matplotlib import colormaps

    names = list(dict.fromkeys(row["provider"] for row in rows))
    return {name: colormaps["tab20"](number % 20) for number, name in enumerate(names)}


def _of(rows: Sequence[Result], other: str = "V") -> str:
    """What the rows of a panel have in common."""
    if not rows:
        return ""
    return f" (D={rows[0]['D']}, {other}={rows[0][other]}, {rows[0]['dtype']})"


def _lines(
    panel: Axes, rows: Sequence[Result], colours: dict[str, Colour], x: str, y: Value
) -> None:
    for name, colour in colours.items():
        points = sorted((row[x], y(row)) for row in rows if row["provider"] == name)
        if points:
            style = "-" if name.startswith("rao_kernels") else "--"
            panel.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=4)
    if rows:
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")


def _scatter(panel: Axes, rows: Sequence[Result], colours: dict[str, Colour]) -> None:
    for row in rows:
        error = max(row["dhidden_error"], row["dweight_error"])
        panel.scatter(row["ratio_to_gemms"], error, color=colours[row["provider"]], s=60)
    if rows:
        panel.set_xscale("log")
        panel.set_yscale("log")
    title = f"Speed and error: {rows[0]['case']}, {rows[0]['dtype']}" if rows else "Speed and error"
    _name(panel, title, "time, as a multiple of the bare products", "error of the gradients")


def _name(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set(title=title, xlabel=x, ylabel=y)
    panel.grid(visible=True, which="major", alpha=0.3)
    if not panel.has_data():
        panel.text(0.5, 0.5, "no rows", ha="center", transform=panel.transAxes)
