"""Losses without a reference model."""

from __future__ import annotations

from torch import Tensor

from ._inputs import LossInputs
from ._terms import (
    Terms,
    check_positive,
    logistic,
    pair_terms,
    per_token,
    preferred_token_weights,
    weighted_mean,
)


def simpo(inputs: LossInputs, *, beta: float, gamma: float) -> Terms:
    """SimPO: ``-log sigmoid(beta (lbar_w - lbar_l) - gamma)`` per pair (arXiv 2405.14734).

    lbar is the mean token log-probability; gamma the target margin.
    """
    scores = check_positive("beta", beta) * per_token(inputs.logps, inputs)

    def surrogate(margin: Tensor) -> Tensor:
        return logistic(margin - gamma)

    return pair_terms(inputs, scores, surrogate)


def sft(inputs: LossInputs) -> Terms:
    """Cross-entropy per token, of the preferred responses where `preferred` is given."""
    values = -inputs.token_logps.double()
    return Terms(values, {"nll_loss": weighted_mean(values, preferred_token_weights(inputs))})
