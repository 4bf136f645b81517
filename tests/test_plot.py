"""Labels of pictures: each beside what it names, none over another."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from matplotlib.text import Text

from rao_kernels import _plot
from rao_kernels._plot import Label
from rao_kernels.errors import MissingDependencyError


def test_labels_of_lines_that_end_together_are_apart_and_in_order() -> None:
    figure = _plot.new_figure(5, 4, "bench")
    panel = figure.subplots()
    ends = [1.0, 1.02, 1.01, 5.0, 1.03]
    for number, end in enumerate(ends):
        panel.plot([0, 1], [number, end])
    _plot.label_ends(panel, [Label(1, end, f"line {end}", _plot.INK) for end in ends])
    figure.draw_without_rendering()
    texts = sorted(panel.texts, key=lambda text: text.xyann[1])
    assert [text.get_text() for text in texts] == [f"line {end}" for end in sorted(ends)]
    boxes = [Text.get_window_extent(text) for text in texts]  # without its line
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))


def test_labels_of_points_cover_no_point_and_no_label() -> None:
    figure = _plot.new_figure(6, 4, "bench")
    panel = figure.subplots()
    points = [(1.0, 1.0), (1.1, 1.0), (1.2, 1.0), (1.4, 1.01), (3.0, 2.0)]
    panel.scatter(*zip(*points, strict=True))
    _plot.label_points(panel, [Label(x, y, f"point {x}", _plot.INK) for x, y in points])
    assert len(panel.texts) == len(points)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in panel.texts]
    centres = [panel.transData.transform(point) for point in points]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        assert not any(box.contains(*centre) for centre in centres)


def test_an_empty_panel_says_so() -> None:
    panel = _plot.new_figure(3, 3, "bench").subplots()
    _plot.describe(panel, "Time")
    assert [text.get_text() for text in panel.texts] == ["no results"]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"rao-kernels\[train\]"):
        _plot.new_figure(3, 3, "train")


def test_the_folder_of_a_picture_is_made(tmp_path: Path) -> None:
    _plot.save(_plot.new_figure(3, 3, "bench"), tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
