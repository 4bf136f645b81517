"""Pair losses that regress the margin onto the gap between two explicit rewards.

Reward distillation (`rpo_distill`); Pessimistic distillation (`rpo_pessimistic`); Nemotron RPO,
backward KL (`rpo_bwd_kl`); Nemotron RPO, forward KL (`rpo_fwd_kl`).

Legend: w chosen, l rejected; D log-ratio of a response to the reference, u = beta (D_w - D_l);
r explicit reward; sp(a) = log(1 + exp(a)), H entropy; P pairs, M reward models. With the option
`f_divergence`, its score replaces D (f-DPO, see `modifiers`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Unpack

from torch import Tensor

from ..errors import InputError
from ._inputs import LossInputs
from ._spec import LossSpec
from ._terms import (
    Pairs,
    Terms,
    bernoulli_kl,
    check_not_negative,
    check_positive,
    log_ratios,
    pair_up,
)
from .modifiers import ScoreOptions, margin_row, margin_terms


def rpo_distill(inputs: LossInputs, *, beta: float, **options: Unpack[ScoreOptions]) -> Terms:
    """Reward distillation: ``(r_w - r_l - u)^2``, mean over pairs.

    Fisch et al. 2024, arXiv 2405.19316.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``.
    """
    check_positive("beta", beta)
    pairs = pair_up(inputs)
    gap = _gap(inputs.require("rewards"), pairs)

    def surrogate(margin: Tensor) -> Tensor:
        return (gap - margin).square()

    return margin_terms(inputs, pairs, beta, surrogate, squared=True, **options)


def rpo_pessimistic(
    inputs: LossInputs,
    *,
    beta: float,
    gamma: float,
    minimum: Literal["pair", "batch"],
    **options: Unpack[ScoreOptions],
) -> Terms:
    """Pessimistic distillation: ``min_i (g_i - u)^2 - gamma (D_w + D_l) / 2``, mean over pairs.

    Fisch et al. 2024, arXiv 2405.19316. g_i is the reward gap under model i of the ensemble;
    ``-(D_w + D_l) / 2`` estimates the KL of the reference to the policy.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        gamma: weight of the KL of the reference to the policy, 0 or more; 0 is off.
        minimum: "pair" takes the minimum over reward models for each pair, "batch" over the models'
            means of the batch, which do not add up over its parts.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``.
    """
    check_positive("beta", beta)
    if minimum not in ("pair", "batch"):
        raise InputError("minimum", "'pair' or 'batch'", repr(minimum))
    pairs = pair_up(inputs)
    gaps = _gap(inputs.require("reward_ensemble"), pairs)

    def surrogate(margin: Tensor) -> Tensor:
        errors = (gaps - margin).square()
        if minimum == "pair":
            return errors.min(0).values
        nearest = errors.detach().mean(1).argmin()
        return errors.index_select(0, nearest[None])[0]

    check_not_negative("gamma", gamma)
    terms = margin_terms(inputs, pairs, beta, surrogate, squared=True, **options)
    if gamma == 0:
        return terms
    chosen, rejected = pairs.split(log_ratios(inputs))
    return replace(terms, values=terms.values - gamma * (chosen + rejected) / 2)


def rpo_bwd_kl(
    inputs: LossInputs, *, beta: float, eta: float, **options: Unpack[ScoreOptions]
) -> Terms:
    """Nemotron RPO: KL of Bernoulli(sigmoid(b)) to Bernoulli(sigmoid(u)), ``b = eta (r_w - r_l)``.

    Adler et al. (NVIDIA) 2024, arXiv 2406.11704. Equal to
    ``sp(-u) + sigmoid(-b) u - H(sigmoid(b))``; mean over pairs.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        eta: scale of the reward gap, above 0.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``.
    """
    return _reward_aware(inputs, beta, eta, _flipped(bernoulli_kl), options)


def rpo_fwd_kl(
    inputs: LossInputs, *, beta: float, eta: float, **options: Unpack[ScoreOptions]
) -> Terms:
    """Nemotron RPO: KL of Bernoulli(sigmoid(u)) to Bernoulli(sigmoid(b)), ``b = eta (r_w - r_l)``.

    Adler et al. (NVIDIA) 2024, arXiv 2406.11704. dL/du = sigmoid(u) sigmoid(-u) (u - b); mean
    over pairs.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        eta: scale of the reward gap, above 0.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``.
    """
    return _reward_aware(inputs, beta, eta, bernoulli_kl, options)


def _reward_aware(
    inputs: LossInputs,
    beta: float,
    eta: float,
    divergence: Callable[[Tensor, Tensor], Tensor],
    options: ScoreOptions,
) -> Terms:
    """Return Nemotron RPO with either direction of the KL."""
    check_positive("beta", beta)
    check_positive("eta", eta)
    pairs = pair_up(inputs)
    target = eta * _gap(inputs.require("rewards"), pairs)

    def surrogate(margin: Tensor) -> Tensor:
        return divergence(margin, target)

    return margin_terms(inputs, pairs, beta, surrogate, **options)


def _flipped(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: function(b, a)


def _gap(rewards: Tensor, pairs: Pairs) -> Tensor:
    """Return ``r_w - r_l`` of rewards ``[..., S]``."""
    wide = rewards.double()
    return wide[..., pairs.chosen] - wide[..., pairs.rejected]


ROWS: tuple[LossSpec, ...] = (
    margin_row(
        "rpo_distill",
        "Reward distillation",
        rpo_distill,
        {"beta": 0.1},
        (
            "Fisch et al. 2024, Robust Preference Optimization through Reward Model Distillation, "
            "arXiv 2405.19316"
        ),
        defaults_from="beta 0.1 is DPO's.",
        needs=("rewards",),
        notes=("NeMo-Aligner's rpo_sq.",),
    ),
    margin_row(
        "rpo_pessimistic",
        "Pessimistic distillation",
        rpo_pessimistic,
        {"beta": 0.1, "gamma": 0.0, "minimum": "pair"},
        (
            "Fisch et al. 2024, Robust Preference Optimization through Reward Model Distillation, "
            "arXiv 2405.19316"
        ),
        defaults_from=(
            "beta 0.1 is DPO's; gamma 0 with a minimum for each pair is the paper's e-DPO."
        ),
        needs=("reward_ensemble",),
    ),
    margin_row(
        "rpo_bwd_kl",
        "Nemotron RPO, backward KL",
        rpo_bwd_kl,
        {"beta": 0.2, "eta": 1.0},
        "Adler et al. (NVIDIA) 2024, Nemotron-4 340B Technical Report, arXiv 2406.11704",
        defaults_from="NeMo-Aligner's.",
        needs=("rewards",),
    ),
    margin_row(
        "rpo_fwd_kl",
        "Nemotron RPO, forward KL",
        rpo_fwd_kl,
        {"beta": 0.2, "eta": 1.0},
        "Adler et al. (NVIDIA) 2024, Nemotron-4 340B Technical Report, arXiv 2406.11704",
        defaults_from="NeMo-Aligner's.",
        needs=("rewards",),
    ),
)
