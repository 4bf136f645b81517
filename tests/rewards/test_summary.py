"""Statistics of the rewards in a file, and their picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rao_kernels.rewards.summary import draw, summarize
from tests.train.tiny import write_jsonl


def test_statistics_of_responses_and_pairs(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"rewards": [1.0, 1.0, 4.0], "ref_rewards": [2.0, 4.0]},
        {"score_chosen": 3.0, "score_rejected": 2.0},
        {"score_chosen": 0.0, "score_rejected": 5.0},
        {"rewards": [2.0]},
    ]
    found = summarize(write_jsonl(tmp_path / "scored.jsonl", rows))
    assert found is not None
    values = torch.tensor([1.0, 1.0, 4.0, 3.0, 2.0, 0.0, 5.0, 2.0])
    assert found.rewards == values.tolist()
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.deviation == pytest.approx(float(values.std(correction=0)))
    assert found.quartiles[0] == 0.0 and found.quartiles[-1] == 5.0
    assert found.quartiles == tuple(sorted(found.quartiles))
    # One of the three pairs of the first record, and none of the two others.
    assert found.ties == pytest.approx(1 / 5)
    assert found.accuracy == 0.5
    assert found.ref_rewards == [2.0, 4.0]
    for number in ("8 rewards", "20.0%", "50.0%", "2 rewards of the reference: mean 3"):
        assert number in found.describe()


def test_without_pairs_there_are_no_ties(tmp_path: Path) -> None:
    found = summarize(write_jsonl(tmp_path / "scored.jsonl", [{"rewards": [2.0]}]))
    assert found is not None
    assert (found.ties, found.accuracy, found.deviation) == (None, None, 0.0)
    assert "nan" not in found.describe()
    draw(found, tmp_path / "one.png")


def test_no_rewards_no_summary(tmp_path: Path) -> None:
    assert summarize(write_jsonl(tmp_path / "scored.jsonl", [])) is None


def test_the_picture_has_every_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn = []
    hist = Axes.hist

    def counted(axes: Axes, values: list[float], bins: list[float], **style: object) -> object:
        counts, *rest = hist(axes, values, bins, **style)  # type: ignore[arg-type]
        drawn.append(counts.sum())
        return counts, *rest

    monkeypatch.setattr(Axes, "hist", counted)
    rows: list[dict[str, object]] = [
        {"rewards": [-3.0, 0.1, 4.0], "ref_rewards": [-5.0, 9.0]},
        {"rewards": [4.0, 0.0]},
    ]
    found = summarize(write_jsonl(tmp_path / "scored.jsonl", rows))
    assert found is not None
    draw(found, tmp_path / "scored.png")
    assert drawn == [5, 2]
    assert (tmp_path / "scored.png").stat().st_size > 5000
