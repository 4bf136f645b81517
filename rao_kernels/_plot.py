"""Style of all plots: rao_kernels in blue, others muted, labels beside their points and lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

OURS, OURS_LIGHT = "#1257b8", "#4d9bf0"
INK, GRID = "#2b2b2b", "#e3e3e3"
MUTED = ("#9c8468", "#7d8791", "#8c7a99", "#6f8f78", "#a57c7c", "#5f8a94", "#94906a", "#b59a3c")
SIZE = 9.0  # points of text
LINE_GAP = 1.3  # distance of labels below one another, in text sizes
# Where a label may stand beside its point, in text sizes, the best first.
_SIDES = ((1, 0), (0, 1), (0, -1), (-1, 0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8))
OFFSETS = [(dx * far, dy * far) for far in (0.8, 1.6, 2.6, 3.6, 4.8) for dx, dy in _SIDES]


@dataclass(frozen=True)
class Label:
    """Text beside the point (x, y), in data coordinates, of a panel."""

    x: float
    y: float
    text: str
    colour: str
    bold: bool = False

    @property
    def font(self) -> dict[str, Any]:
        weight = "bold" if self.bold else "normal"
        return {"color": self.colour, "fontsize": SIZE, "fontweight": weight}


def new_figure(width: float, height: float, extra: str) -> Figure:
    """Return an empty figure, sizes in inches; `extra` of this package installs matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", extra) from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure


def save(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write the figure to `path`, and create its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


def describe(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Set title and axis labels of a panel; one without data is marked "no results"."""
    axes.set_title(title, loc="left", fontsize=SIZE + 1.5, fontweight="bold", color=INK)
    axes.set_xlabel(x, fontsize=SIZE, color=INK)
    axes.set_ylabel(y, fontsize=SIZE, color=INK)
    axes.tick_params(which="both", labelsize=SIZE - 0.5, color=GRID, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b5b5b5")
    axes.grid(visible=True, which="major", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if not axes.has_data():
        axes.text(0.5, 0.5, "no results", ha="center", transform=axes.transAxes, fontsize=SIZE)


def plain_ticks(axes: Axes, which: str, ticks: Sequence[float]) -> None:
    """Set `ticks`, written as plain numbers, on the "x" or "y" axis, which may be logarithmic."""
    from matplotlib.ticker import NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks, [f"{tick:,g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())


def label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Label lines right of the panel, at the height where they end, without overlaps."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    box = axes.get_window_extent()
    gap = LINE_GAP * SIZE * axes.figure.dpi / 72 / box.height
    rising = sorted(labels, key=lambda label: _height(axes, label))
    heights = _apart([_height(axes, label) for label in rising], gap)
    for height, label in zip(heights, rising, strict=True):
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.6, "alpha": 0.6},
            **label.font,
        )


def _height(axes: Axes, label: Label) -> float:
    """Return the height of the label's point, as a share of the panel's."""
    shown = axes.transData.transform((label.x, label.y))
    return float(axes.transAxes.inverted().transform(shown)[1])


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return ascending heights moved until they are `gap` apart, in up to 200 small steps."""
    found = list(heights)
    for _ in range(200):
        for number in range(1, len(found)):
            short = gap - (found[number] - found[number - 1])
            if short > 1e-6:
                found[number - 1] -= short / 2
                found[number] += short / 2
    return found


def label_points(axes: Axes, labels: Sequence[Label]) -> None:
    """Label points, each at the first of `OFFSETS` where it covers no point and no other label."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    panel, scale = axes.get_window_extent(), SIZE * axes.figure.dpi / 72
    taken = [_around(axes.transData.transform((one.x, one.y)), scale) for one in labels]
    for label in labels:
        for offset in OFFSETS:
            text = _beside(axes, label, offset)
            extent = text.get_window_extent()
            inside = panel.x0 <= extent.x0 and extent.x1 <= panel.x1
            if inside and not any(extent.overlaps(box) for box in taken):
                break
            if offset != OFFSETS[-1]:
                text.remove()
        taken.append(extent)


def _beside(axes: Axes, label: Label, offset: tuple[float, float]) -> Annotation:
    """Draw a label `offset` text sizes from its point, joined to it by a line if that is far."""
    dx, dy = offset
    line = {"arrowstyle": "-", "color": label.colour, "linewidth": 0.6}
    text = axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(dx * SIZE, dy * SIZE),
        textcoords="offset points",
        ha="left" if dx > 0 else "right" if dx < 0 else "center",
        va="bottom" if dy > 0 else "top" if dy < 0 else "center",
        arrowprops=line if max(abs(dx), abs(dy)) > 1.5 else None,
        **label.font,
    )
    text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.4})
    text.set_in_layout(False)
    return text


def _around(centre: Any, size: float) -> Bbox:
    from matplotlib.transforms import Bbox

    x, y = centre
    return Bbox.from_bounds(x - size / 2, y - size / 2, size, size)
