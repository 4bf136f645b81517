"""Losses without a reference model."""

from __future__ import annotations

from torch import Tensor

from ._inputs import LossInputs
from ._spec import PAIR, LossSpec
from ._terms import Terms, check_positive, logistic, pair_terms, pair_weights, per_token


def simpo(inputs: LossInputs, *, beta: float, gamma: float) -> Terms:
    """SimPO: ``-log sigmoid(beta (lbar_w - lbar_l) - gamma)`` per pair (arXiv 2405.14734).

    lbar is the mean token log-probability; gamma the target margin.
    """
    scores = check_positive("beta", beta) * per_token(inputs.logps, inputs)

    def surrogate(margin: Tensor) -> Tensor:
        return logistic(margin - gamma)

    return pair_terms(inputs, scores, surrogate)


ROWS: tuple[LossSpec, ...] = (
    LossSpec(
        name="simpo",
        unit="pair",
        terms=simpo,
        weights=pair_weights,
        needs=PAIR,
        defaults={"beta": 2.0, "gamma": 0.5},
        paper="Simple Preference Optimization, arXiv 2405.14734",
    ),
)
