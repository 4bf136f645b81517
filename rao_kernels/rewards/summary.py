"""What the rewards of a file are like: statistics and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import _plot

_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class RewardSummary:
    """Statistics of the rewards of a file of records.

    rewards: of all responses. quartiles: least reward, the three quartiles, largest reward.
    ties: share of the pairs of responses to one prompt that have the same reward; None without
        such a pair. accuracy: share of the pairs of a chosen and a rejected response of which the
        chosen has the larger reward; None without pairs. ref_rewards: of the reference's samples.
    """

    rewards: list[float]
    mean: float
    deviation: float
    quartiles: tuple[float, ...]
    ties: float | None
    accuracy: float | None
    ref_rewards: list[float]

    def describe(self) -> str:
        """Return the statistics as lines of text."""
        low, *quartiles, high = (f"{value:.4g}" for value in self.quartiles)
        lines = [
            f"{len(self.rewards)} rewards: mean {self.mean:.4g}, standard deviation "
            f"{self.deviation:.4g}, from {low} to {high}, quartiles {', '.join(quartiles)}"
        ]
        if self.ties is not None:
            lines.append(
                f"responses to one prompt with equal rewards: {self.ties:.1%} of the pairs"
            )
        if self.accuracy is not None:
            lines.append(f"chosen rewarded above rejected: {self.accuracy:.1%}")
        if self.ref_rewards:
            mean = sum(self.ref_rewards) / len(self.ref_rewards)
            lines.append(f"{len(self.ref_rewards)} rewards of the reference: mean {mean:.4g}")
        return "\n".join(lines)


def summarize(path: str | PathLike[str]) -> RewardSummary | None:
    """Read the rewards of a .jsonl file that `annotate` wrote; None if it holds none."""
    rewards: list[float] = []
    references: list[float] = []
    pairs = ties = chosen = ordered = 0
    for line in _lines(Path(path)):
        own = _rewards_of(line)
        rewards += own
        references += line.get("ref_rewards") or []
        pairs += math.comb(len(own), 2)
        ties += sum(a == b for a, b in combinations(own, 2))
        if "score_chosen" in line and len(own) == 2:
            chosen, ordered = chosen + 1, ordered + (own[0] > own[1])
    if not rewards:
        return None
    values = torch.tensor(rewards, dtype=torch.float64)
    return RewardSummary(
        rewards,
        float(values.mean()),
        float(values.std(correction=0)),
        tuple(quantiles(values, _SHARES)),
        ties / pairs if pairs else None,
        ordered / chosen if chosen else None,
        references,
    )


def quantiles(values: Tensor, shares: Sequence[float]) -> list[float]:
    """Return the values below which these shares of the values are, each one of `values`."""
    # torch.quantile refuses large inputs; an index into the sorted values does not.
    ordered = values.sort().values
    places = torch.tensor(shares, dtype=torch.float64) * (len(ordered) - 1)
    found: list[float] = ordered[places.round().long()].tolist()
    return found


def draw(summary: RewardSummary, path: Path) -> None:
    """Write a histogram of the rewards, and of those of the reference, as a PNG."""
    figure = _plot.new_figure(6.5, 3.6, "train")
    axes = figure.add_subplot()
    bins = _edges([*summary.rewards, *summary.ref_rewards])
    axes.hist(summary.rewards, bins, color=_plot.OURS, label="responses")
    if summary.ref_rewards:
        style: dict[str, Any] = {"histtype": "step", "linewidth": 2, "color": _plot.MUTED[0]}
        axes.hist(summary.ref_rewards, bins, label="samples of the reference", **style)
        axes.legend(fontsize=_plot.SIZE, frameon=False)
    axes.axvline(summary.mean, color=_plot.INK, linewidth=1, linestyle="--")
    title = f"Rewards: mean {summary.mean:.3g}, standard deviation {summary.deviation:.3g}"
    _plot.describe(axes, title, "reward", "responses")
    _plot.save(figure, path)


def _edges(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return [low + (high - low) * step / 40 for step in range(41)]


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _rewards_of(line: Mapping[str, Any]) -> list[float]:
    if line.get("score_chosen") is not None:
        return [line["score_chosen"], line["score_rejected"]]
    rewards: list[float] = line.get("rewards") or []
    return rewards
