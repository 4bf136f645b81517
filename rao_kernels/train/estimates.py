"""Means over held-out prompts with standard errors, KL of samples, comparison of two models.

Responses to one prompt are not independent, so that errors are over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

# Per prompt, per sample, one value per token.
TokenValues = Sequence[Sequence[Sequence[float]]]
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean. std_error: None for a single prompt."""

    value: float
    std_error: float | None

    def __str__(self) -> str:
        error = "" if self.std_error is None else f" ± {self.std_error:.4f}"
        return f"{self.value:.4f}{error}"


def mean_over_prompts(groups: Sequence[Sequence[float]]) -> Estimate:
    """Return the mean over prompts of each prompt's mean."""
    means = numpy.array([numpy.mean(group) for group in groups], dtype=numpy.float64)
    return Estimate(float(means.mean()), _std_error(means))


def ratio_over_prompts(sums: Sequence[float], counts: Sequence[int]) -> Estimate:
    """Return ``sum(sums) / sum(counts)``, with the error of a ratio to first order."""
    total = numpy.array(sums, dtype=numpy.float64)
    number = numpy.array(counts, dtype=numpy.float64)
    ratio = total.sum() / number.sum()
    return Estimate(float(ratio), _std_error((total - ratio * number) / number.mean()))


def _std_error(values: NDArray[numpy.float64]) -> float | None:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def kl_of_samples(logps: TokenValues, ref_logps: TokenValues) -> dict[str, Estimate]:
    """Estimate the KL of a model to a reference, in nats, on the model's own samples.

    With D a token's log-ratio, k1 is D and k3 is ``exp(-D) - 1 + D``: both have the KL as their
    mean, k3 is never negative and mostly varies less. A sequence's is the sum over its tokens.

    Args:
        logps, ref_logps: of the sampled tokens, under the model at temperature 1, from which they
            were sampled without `top_p` and `top_k`, and under the reference.
    """
    found: dict[str, Estimate] = {}
    for name in ("k1", "k3"):
        values = [
            [
                [_k(name, a - b) for a, b in zip(*sample, strict=True)]
                for sample in zip(*group, strict=True)
            ]
            for group in zip(logps, ref_logps, strict=True)
        ]
        sums = [[math.fsum(sample) for sample in group] for group in values]
        counts = [sum(map(len, group)) for group in values]
        found[f"{name}_per_sequence"] = mean_over_prompts(sums)
        found[f"{name}_per_token"] = ratio_over_prompts([math.fsum(g) for g in sums], counts)
    return found


def _k(name: str, log_ratio: float) -> float:
    # Of log-ratios near 0 the difference of exp and 1 would be rounding alone.
    return log_ratio if name == "k1" else math.expm1(-log_ratio) + log_ratio


@dataclass(frozen=True)
class Comparison:
    """Two models on the same prompts, by each prompt's mean reward.

    wins, ties, losses: numbers of prompts. win_rate: share of the wins and half of the ties.
    difference: mean over prompts of the first model's mean reward less the other's.
    win_rate_interval, difference_interval: from the 2.5th to the 97.5th percentile over resamples
        of the prompts.
    """

    wins: int
    ties: int
    losses: int
    win_rate: Estimate
    win_rate_interval: tuple[float, float]
    difference: Estimate
    difference_interval: tuple[float, float]


def compare_rewards(
    rewards: Sequence[Sequence[float]], others: Sequence[Sequence[float]], seed: int
) -> Comparison:
    """Compare two models' rewards on the same prompts, in the same order.

    seed: of the resamples of the intervals.
    """
    means = [numpy.array([numpy.mean(one) for one in side]) for side in (rewards, others)]
    difference = means[0] - means[1]
    points = (numpy.sign(difference) + 1) / 2
    generator = numpy.random.default_rng(seed)
    both = numpy.stack([points, difference], axis=-1)
    # In parts, so that memory does not grow with the number of resamples.
    parts = [
        both[generator.integers(0, len(both), (_RESAMPLES // 20, len(both)))].mean(1)
        for _ in range(20)
    ]
    resampled = numpy.concatenate(parts)
    low, high = numpy.quantile(resampled, [0.025, 0.975], axis=0).tolist()
    return Comparison(
        wins=int((difference > 0).sum()),
        ties=int((difference == 0).sum()),
        losses=int((difference < 0).sum()),
        win_rate=Estimate(float(points.mean()), _std_error(points)),
        win_rate_interval=(low[0], high[0]),
        difference=Estimate(float(difference.mean()), _std_error(difference)),
        difference_interval=(low[1], high[1]),
    )
