"""Pair-wise losses with a reference: functions of the margin between two implicit rewards."""

from __future__ import annotations

from torch import Tensor

from ._inputs import LossInputs
from ._spec import PAIR, REFERENCE, LossSpec
from ._terms import (
    Terms,
    check_positive,
    log_ratios,
    logistic,
    pair_terms,
    pair_weights,
    per_token,
)


def sigmoid(inputs: LossInputs, *, beta: float) -> Terms:
    """DPO: ``-log sigmoid(beta (D_w - D_l))`` per pair (arXiv 2305.18290)."""
    return pair_terms(inputs, check_positive("beta", beta) * log_ratios(inputs), logistic)


def ipo(inputs: LossInputs, *, tau: float, length_normalized: bool) -> Terms:
    """IPO: ``(D_w - D_l - 1 / (2 tau))^2`` per pair (arXiv 2310.12036).

    D is the paper's sum over tokens, or with `length_normalized` the mean. The implicit rewards
    are tau D.
    """
    check_positive("tau", tau)
    ratios = log_ratios(inputs)
    scores = per_token(ratios, inputs) if length_normalized else ratios

    def surrogate(margin: Tensor) -> Tensor:
        return ((margin - 0.5) / tau).square()

    return pair_terms(inputs, tau * scores, surrogate)


ROWS: tuple[LossSpec, ...] = (
    LossSpec(
        name="sigmoid",
        unit="pair",
        terms=sigmoid,
        weights=pair_weights,
        needs=(*PAIR, REFERENCE),
        defaults={"beta": 0.1},
        paper="Direct Preference Optimization, arXiv 2305.18290",
    ),
    LossSpec(
        name="ipo",
        unit="pair",
        terms=ipo,
        weights=pair_weights,
        needs=(*PAIR, REFERENCE),
        defaults={"tau": 0.1, "length_normalized": False},
        paper="Identity Preference Optimization, arXiv 2310.12036",
    ),
)
