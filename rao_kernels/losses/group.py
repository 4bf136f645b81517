"""Losses that couple the K responses of a prompt through a softmax.

InfoNCA (`infonca`), NCA (`nca`), EXO (`exo`).

Legend: S sequences, K responses to a prompt, D log-ratio of a response to the reference, r its
reward; ``p = softmax(r / alpha)`` and ``q = softmax(beta D)`` over the responses to a prompt,
sp(a) = log(1 + exp(a)). Values ``[S]``: each response has its prompt's value, and the mean is over
prompts.
"""

from __future__ import annotations

from torch import Tensor

from ._inputs import LossInputs
from ._spec import REFERENCE, LossSpec
from ._terms import (
    Terms,
    check_positive,
    group_logsumexp,
    group_mean,
    group_sum,
    log_ratios,
    logistic,
    prompt_weights,
    reward_preference_metrics,
)


def infonca(inputs: LossInputs, *, beta: float, alpha: float) -> Terms:
    """InfoNCA: ``-sum_i p_i log q_i``, mean over prompts.

    Chen et al. 2024, arXiv 2402.05369.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        alpha: temperature of the softmax over rewards, in reward; towards 0 only the best response
            counts.

    Returns:
        Values ``[S]``.
    """
    scores, target = _scores_and_target(inputs, beta, alpha)
    return _terms(inputs, scores, group_sum(-target.exp() * _log_softmax(scores, inputs), inputs))


def nca(inputs: LossInputs, *, beta: float, alpha: float) -> Terms:
    """NCA: ``sum_i [p_i sp(-beta D_i) + sp(beta D_i) / K]``, mean over prompts.

    Chen et al. 2024, arXiv 2402.05369. The gradient of a response does not depend on the
    log-probability of another.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        alpha: temperature of the softmax over rewards, in reward; towards 0 only the best response
            counts.

    Returns:
        Values ``[S]``.
    """
    scores, target = _scores_and_target(inputs, beta, alpha)
    wanted = group_sum(target.exp() * logistic(scores), inputs)
    return _terms(inputs, scores, wanted + group_mean(logistic(-scores), inputs))


def exo(inputs: LossInputs, *, beta: float, alpha: float) -> Terms:
    """EXO: ``sum_i q_i (log q_i - log p_i)``, mean over prompts.

    Ji et al. 2024, arXiv 2402.00856.

    Args:
        beta: KL coefficient (the paper's beta_pi), in reward per nat; the implicit reward is beta
            D.
        alpha: temperature of the softmax over rewards (the paper's beta_r), in reward; towards 0
            only the best response counts.

    Returns:
        Values ``[S]``.
    """
    scores, target = _scores_and_target(inputs, beta, alpha)
    found = _log_softmax(scores, inputs)
    return _terms(inputs, scores, group_sum(found.exp() * (found - target), inputs))


def _scores_and_target(inputs: LossInputs, beta: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Return beta D and log p, ``[S]`` each."""
    rewards = inputs.require("rewards").double() / check_positive("alpha", alpha)
    return check_positive("beta", beta) * log_ratios(inputs), _log_softmax(rewards, inputs)


def _log_softmax(values: Tensor, inputs: LossInputs) -> Tensor:
    return values - group_logsumexp(values, inputs)


def _terms(inputs: LossInputs, scores: Tensor, values: Tensor) -> Terms:
    return Terms(values, reward_preference_metrics(inputs, scores))


_NEEDS = ("groups", "rewards", REFERENCE)
_NCA_NOTE = (
    "With one preferred response of two this is DPO (InfoNCA) or nca_pair (NCA). The authors' code "
    "defaults to alpha 1e-4, nearly one-hot."
)

ROWS: tuple[LossSpec, ...] = (
    LossSpec(
        name="infonca",
        title="InfoNCA",
        unit="prompt",
        terms=infonca,
        weights=prompt_weights,
        needs=_NEEDS,
        defaults={"beta": 0.01, "alpha": 0.01},
        paper=(
            "Chen et al. 2024, Noise Contrastive Alignment of Language Models with Explicit "
            "Rewards, arXiv 2402.05369, Sec. 3"
        ),
        defaults_from="beta 0.01 is the paper's for `nca_pair`; alpha is set equal to it.",
        notes=(_NCA_NOTE,),
    ),
    LossSpec(
        name="nca",
        title="NCA",
        unit="prompt",
        terms=nca,
        weights=prompt_weights,
        needs=_NEEDS,
        defaults={"beta": 0.01, "alpha": 0.01},
        paper=(
            "Chen et al. 2024, Noise Contrastive Alignment of Language Models with Explicit "
            "Rewards, arXiv 2402.05369, Sec. 4"
        ),
        defaults_from="beta 0.01 is the paper's for `nca_pair`; alpha is set equal to it.",
        notes=(_NCA_NOTE,),
    ),
    LossSpec(
        name="exo",
        title="EXO",
        unit="prompt",
        terms=exo,
        weights=prompt_weights,
        needs=_NEEDS,
        defaults={"beta": 0.1, "alpha": 0.1},
        paper=(
            "Ji et al. 2024, Towards Efficient Exact Optimization of Language Model Alignment, "
            "arXiv 2402.00856"
        ),
        defaults_from="those of the authors' IMDb script, where beta_pi and beta_r are 0.1.",
        notes=("The paper's beta_pi is beta, its beta_r is alpha.",),
    ),
)
