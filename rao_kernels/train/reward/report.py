"""What a reward model does on held-out pairs: accuracy, calibration, rewards."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ... import _plot
from ...losses import bradley_terry_loss
from ...refcache import write_atomic

REPORT_FILE = "reward_model.json"
PICTURE_FILE = "reward_model.png"
_BINS = 10


@dataclass(frozen=True)
class Bin:
    """The pairs whose winner is predicted with a confidence from `low` to `high`.

    confidence: its mean. accuracy: share of them whose predicted winner is the chosen response.
    """

    low: float
    high: float
    pairs: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class RewardReport:
    """Measures of a reward model on held-out pairs.

    loss: mean Bradley-Terry loss, without margin and centering. accuracy: share of the pairs whose
        chosen response has the larger reward. ece: expected calibration error, the mean over pairs
        of the bins' ``|accuracy - confidence|``, where the confidence of a pair is sigmoid of the
        size of its margin. chosen, rejected: mean and standard deviation of the rewards.
    """

    pairs: int
    loss: float
    accuracy: float
    margin: float
    ece: float
    chosen: tuple[float, float]
    rejected: tuple[float, float]
    bins: list[Bin]

    def describe(self) -> str:
        """Return the measures as one line."""
        return (
            f"{self.pairs} held-out pairs: accuracy {self.accuracy:.1%}, loss {self.loss:.4f}, "
            f"mean margin {self.margin:.4g}, expected calibration error {self.ece:.1%}"
        )


def measure(rewards: Tensor) -> RewardReport:
    """Return the measures of the rewards of chosen and rejected responses, ``[pairs, 2]``."""
    chosen, rejected = rewards.double().unbind(1)
    gap = chosen - rejected
    right = (gap > 0).double()
    confidence = gap.abs().sigmoid()
    # Confidences are from 1/2 to 1.
    places = ((confidence - 0.5) * 2 * _BINS).long().clamp(max=_BINS - 1)
    bins = [
        _bin(number, confidence[places == number], right[places == number])
        for number in range(_BINS)
    ]
    found = [one for one in bins if one.pairs]
    return RewardReport(
        len(gap),
        float(bradley_terry_loss(chosen, rejected).loss),
        float(right.mean()),
        float(gap.mean()),
        sum(one.pairs * abs(one.accuracy - one.confidence) for one in found) / len(gap),
        _moments(chosen),
        _moments(rejected),
        found,
    )


def _bin(number: int, confidence: Tensor, right: Tensor) -> Bin:
    low, high = (0.5 + (number + end) / (2 * _BINS) for end in (0, 1))
    if not len(right):
        return Bin(low, high, 0, 0.0, 0.0)
    return Bin(low, high, len(right), float(confidence.mean()), float(right.mean()))


def _moments(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std(correction=0))


def write_report(report: RewardReport, rewards: Tensor, folder: Path) -> None:
    """Write the measures as JSON, and a picture of calibration and rewards."""
    text = json.dumps(dataclasses.asdict(report), indent=1)
    write_atomic(folder / REPORT_FILE, f"{text}\n".encode())
    figure = _plot.new_figure(10, 3.6, "train")
    left, right = figure.subplots(1, 2)
    left.plot([0.5, 1], [0.5, 1], color=_plot.GRID, linewidth=2)
    points = [(one.confidence, one.accuracy, one.pairs) for one in report.bins]
    sizes = [12 + 200 * count / report.pairs for _, _, count in points]
    left.scatter(*zip(*[point[:2] for point in points], strict=True), s=sizes, color=_plot.OURS)
    title = f"Calibration: error {report.ece:.1%}, accuracy {report.accuracy:.1%}"
    _plot.describe(left, title, "confidence in the predicted winner", "share that is right")
    edges = torch.linspace(*rewards.aminmax(), 41).tolist() if rewards.std() else 1
    for values, colour, name in zip(
        rewards.T.tolist(), (_plot.OURS, _plot.MUTED[0]), ("chosen", "rejected"), strict=True
    ):
        right.hist(values, edges, color=colour, alpha=0.6, label=name)
    right.legend(fontsize=_plot.SIZE, frameon=False)
    _plot.describe(right, "Rewards of held-out responses", "reward", "responses")
    _plot.save(figure, folder / PICTURE_FILE)
