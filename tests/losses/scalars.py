"""Elementary functions of the formulas, on Python floats."""

from __future__ import annotations

import math


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def entropy(p: float) -> float:
    """Return the entropy of a Bernoulli variable, in nats."""
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)
