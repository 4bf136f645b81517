"""Losses on single responses with a label or a win probability.

KTO (`kto`); BCO (`bco`); APO-zero, unpaired (`apo_zero_unpaired`); AOT, unpaired (`aot_unpaired`);
SPPO (`sppo`).

Legend: D log-ratio of a response to the reference, sp(a) = log(1 + exp(a)), S sequences. A response
is desirable where `preferred` is True.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ._inputs import LossInputs
from ._spec import REFERENCE, LossSpec
from ._terms import (
    Pairs,
    Terms,
    check_positive,
    log_ratios,
    logistic,
    pair_metrics,
    pair_weights,
    sequence_weights,
    weighted_mean,
)
from .modifiers import smoothed


def kto(
    inputs: LossInputs, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> Terms:
    """KTO: ``lamD sigmoid(-beta (D - z0))`` or ``lamU sigmoid(beta (D - z0))``, sequence mean.

    Ethayarajh et al. 2024, arXiv 2402.01306. The first is for desirable responses, the second for
    the others; ``z0 = max(0, mean of kl_logps - ref_kl_logps)`` over the batch estimates the KL of
    policy and reference from mismatched prompts and responses, without gradient.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        desirable_weight: lamD, the weight of desirable responses, above 0.
        undesirable_weight: lamU, the weight of the others, above 0.

    Returns:
        Values ``[S]``, with the metric `kl`, which is z0 in nats.
    """
    mismatched = inputs.require("kl_logps").double() - inputs.require("ref_kl_logps").double()
    z0 = mismatched.detach().mean().clamp(min=0)
    scores = check_positive("beta", beta) * log_ratios(inputs)
    terms = _saturating(inputs, scores, beta * z0, desirable_weight, undesirable_weight)
    return Terms(terms.values, {**terms.metrics, "kl": z0})


def apo_zero_unpaired(
    inputs: LossInputs, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> Terms:
    """Unpaired APO-zero: ``lamD sigmoid(-beta D)`` or ``lamU sigmoid(beta D)``, sequence mean.

    D'Oosterlinck et al. 2024, arXiv 2408.06266. The first is for desirable responses, the second
    for the others.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        desirable_weight: lamD, the weight of desirable responses, above 0.
        undesirable_weight: lamU, the weight of the others, above 0.

    Returns:
        Values ``[S]``.
    """
    scores = check_positive("beta", beta) * log_ratios(inputs)
    zero = torch.zeros_like(scores[0])
    return _saturating(inputs, scores, zero, desirable_weight, undesirable_weight)


def _saturating(
    inputs: LossInputs, scores: Tensor, origin: Tensor, desirable: float, undesirable: float
) -> Terms:
    """Return ``weight sigmoid(origin - score)`` for desirable responses, the reverse for others."""
    good = inputs.require("preferred").bool()
    weight = torch.full_like(scores, check_positive("undesirable_weight", undesirable))
    weight = weight.masked_fill(good, check_positive("desirable_weight", desirable))
    distance = torch.where(good, origin - scores, scores - origin)
    return Terms(weight * distance.sigmoid(), label_metrics(inputs, scores))


def bco(inputs: LossInputs, *, beta: float, delta: float | None) -> Terms:
    """BCO: ``sp(delta - beta D)`` or ``sp(beta D - delta)``, mean over sequences.

    Jung et al. 2024, arXiv 2404.04656. The first is for desirable responses, the second for the
    others.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        delta: level of the implicit rewards ``beta D``: a running mean that the caller keeps, or
            None for the batch's own mean; no gradient.

    Returns:
        Values ``[S]``, with the metric `bco/mean_reward`, the batch's mean of ``beta D``.
    """
    scores = check_positive("beta", beta) * log_ratios(inputs)
    mean = scores.detach().mean()
    origin = mean if delta is None else torch.full_like(mean, delta)
    good = inputs.require("preferred").bool()
    values = logistic(torch.where(good, scores - origin, origin - scores))
    return Terms(values, {**label_metrics(inputs, scores), "bco/mean_reward": mean})


def sppo(inputs: LossInputs, *, eta: float) -> Terms:
    """SPPO: ``(D - eta (P - 1/2))^2``, mean over sequences.

    Wu et al. 2024, arXiv 2405.00675, Eq. 4.7. P, in `rewards` and from 0 to 1, is the probability
    that the response wins against the reference, which is the policy of the previous iteration. The
    implicit reward is D / eta.

    Args:
        eta: scale of the target log-ratio, in nats; 1 / beta.

    Returns:
        Values ``[S]``.
    """
    ratios = log_ratios(inputs)
    target = check_positive("eta", eta) * (inputs.require("rewards").double() - 0.5)
    metrics = {
        "rewards/mean": (ratios / eta).mean(),
        "logps/mean": inputs.logps.mean(),
    }
    return Terms((ratios - target).square(), metrics)


def aot_unpaired(inputs: LossInputs, *, beta: float, label_smoothing: float) -> Terms:
    """Unpaired AOT: ``sp(-beta (D_w(k) - D_l(k)))``, mean over ranks k.

    Melnyk et al. 2024, arXiv 2406.05882. Desirable (w) and undesirable (l) responses,
    equally many, are sorted by D separately.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off.

    Returns:
        Values, one per rank.
    """
    scores = check_positive("beta", beta) * log_ratios(inputs)
    pairs = _pair_by_rank(scores.detach(), inputs.require("preferred").bool())
    desirable, undesirable = pairs.split(scores)
    values = smoothed(logistic, label_smoothing)(desirable - undesirable)
    return Terms(values, pair_metrics(inputs, pairs, scores))


def _pair_by_rank(scores: Tensor, good: Tensor) -> Pairs:
    """Pair the k-th smallest score of desirable responses with that of undesirable ones.

    Unequal counts raise where the inputs are on the CPU, and give NaN elsewhere.
    """
    by_score = scores.argsort(stable=True)
    order = by_score[good[by_score].long().argsort(stable=True, descending=True)]
    half = len(order) // 2
    valid = good[order[:half]] & ~good[order[half : 2 * half]]
    if len(order) % 2 or (good.device.type == "cpu" and not bool(valid.all())):
        raise InputError("preferred", "as many True as False", f"unequal counts of {len(order)}")
    nan_if_invalid = torch.zeros(half, dtype=torch.float64, device=scores.device)
    return Pairs(order[:half], order[half:], nan_if_invalid.masked_fill(~valid, torch.nan))


def label_metrics(inputs: LossInputs, implicit_rewards: Tensor) -> dict[str, Tensor]:
    """Return the means of implicit rewards and log-probs, by label."""
    good = inputs.require("preferred").double()
    rewards, logps = implicit_rewards.detach(), inputs.logps.detach()
    chosen, rejected = weighted_mean(rewards, good), weighted_mean(rewards, 1 - good)
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "logps/chosen": weighted_mean(logps, good),
        "logps/rejected": weighted_mean(logps, 1 - good),
    }


_WEIGHTS = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}

ROWS: tuple[LossSpec, ...] = (
    LossSpec(
        name="kto",
        title="KTO",
        unit="sequence",
        terms=kto,
        weights=sequence_weights,
        needs=("preferred", REFERENCE, "kl_logps", "ref_kl_logps"),
        defaults=_WEIGHTS,
        paper=(
            "Ethayarajh et al. 2024, KTO: Model Alignment as Prospect Theoretic Optimization "
            "(Kahneman-Tversky Optimization), arXiv 2402.01306"
        ),
        defaults_from="the paper's and TRL's.",
        notes=(
            "z0 is the mean of the batch given; TRL takes the mean over ranks. Liger has no "
            "weights for the labels, and takes z0 as an argument that it does not clamp.",
        ),
    ),
    LossSpec(
        name="bco",
        title="BCO",
        unit="sequence",
        terms=bco,
        weights=sequence_weights,
        needs=("preferred", REFERENCE),
        defaults={"beta": 0.01, "delta": None},
        paper=(
            "Jung et al. 2024, Binary Classifier Optimization for Large Language Model Alignment, "
            "arXiv 2404.04656"
        ),
        defaults_from="beta 0.01 is the paper's (Appendix C).",
        notes=(
            "TRL subtracts a running mean that starts with the batch's own: keep one of the metric "
            "`bco/mean_reward` and pass it as `delta`. TRL's beta is 0.1. Its density-ratio "
            "weights of undesirable responses are not offered.",
        ),
    ),
    LossSpec(
        name="apo_zero_unpaired",
        title="APO-zero, unpaired",
        unit="sequence",
        terms=apo_zero_unpaired,
        weights=sequence_weights,
        needs=("preferred", REFERENCE),
        defaults=_WEIGHTS,
        paper=(
            "D'Oosterlinck et al. 2024, Anchored Preference Optimization and Contrastive "
            "Revisions, arXiv 2408.06266"
        ),
        defaults_from="beta 0.1 is the paper's (Sec. 5.2); the weights are TRL's.",
    ),
    LossSpec(
        name="aot_unpaired",
        title="AOT, unpaired",
        unit="pair",
        terms=aot_unpaired,
        weights=pair_weights,
        needs=("preferred", REFERENCE),
        defaults={"beta": 0.01, "label_smoothing": 0.0},
        paper=(
            "Melnyk et al. 2024, Distributional Preference Alignment of LLMs via Optimal "
            "Transport, arXiv 2406.05882"
        ),
        defaults_from="beta 0.01 is the paper's (Figure 2); TRL's is 0.1.",
        notes=("Sorting is within the batch given; TRL sorts per device.",),
    ),
    LossSpec(
        name="sppo",
        title="SPPO",
        unit="sequence",
        terms=sppo,
        weights=sequence_weights,
        needs=("rewards", REFERENCE),
        defaults={"eta": 1000.0},
        probabilities=("rewards",),
        paper=(
            "Wu et al. 2024, Self-Play Preference Optimization for Language Model Alignment, "
            "arXiv 2405.00675, Eq. 4.7"
        ),
        defaults_from="the paper's.",
        notes=(
            "eta is 1 / beta of TRL, Liger and the authors' code. `sppo_hard` sums winner and "
            "loser instead of averaging.",
        ),
    ),
)
