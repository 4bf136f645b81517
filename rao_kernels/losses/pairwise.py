"""Pair losses with a reference that are functions of the margin.

Legend: w chosen, l rejected; D log-ratio of a response to the reference, n its length;
h = D_w - D_l, u = beta h; sp(a) = log(1 + exp(a)); P pairs.
Where a row takes `f_divergence`, its score stands for D (see `modifiers`).
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ._inputs import LossInputs
from ._spec import PAIR, REFERENCE, LossSpec
from ._terms import (
    Terms,
    bernoulli_kl,
    check_not_negative,
    check_positive,
    log_ratios,
    logistic,
    pair_metrics,
    pair_up,
    pair_weights,
    per_token,
    reference_logps,
)
from .modifiers import ScoreOptions, expm1, margin_row, margin_terms, smoothed


def dpo(
    inputs: LossInputs, *, beta: float, label_smoothing: float, **options: Unpack[ScoreOptions]
) -> Terms:
    """DPO: ``sp(-u)``; dL/dD_w = -beta sigmoid(-u) (arXiv 2305.18290).

    `label_smoothing` e adds ``e u``: that is cDPO, smallest at ``u = log((1 - e) / e)``.
    """
    check_positive("beta", beta)
    surrogate = smoothed(logistic, label_smoothing)
    return margin_terms(inputs, pair_up(inputs), beta, surrogate, **options)


def sigmoid_norm(
    inputs: LossInputs, *, beta: float, label_smoothing: float, **options: Unpack[ScoreOptions]
) -> Terms:
    """Length-normalised DPO: ``sp(-beta (D_w / n_w - D_l / n_l))`` (arXiv 2411.15124)."""
    check_positive("beta", beta)
    surrogate = smoothed(logistic, label_smoothing)
    return margin_terms(inputs, pair_up(inputs), beta, surrogate, length_normalized=True, **options)


def robust(
    inputs: LossInputs, *, beta: float, label_smoothing: float, **options: Unpack[ScoreOptions]
) -> Terms:
    """Robust DPO: ``((1 - e) sp(-u) - e sp(u)) / (1 - 2 e)`` (arXiv 2403.00409).

    Equal to ``sp(-u) - e u / (1 - 2 e)``, which is how it is computed; not bounded below.

    Args:
        label_smoothing: e, the share of flipped labels, from 0 to below 1/2.
    """
    check_positive("beta", beta)
    if not 0 <= label_smoothing < 0.5:
        raise InputError("label_smoothing", "a number in [0, 0.5)", label_smoothing)
    slope = label_smoothing / (1 - 2 * label_smoothing)

    def surrogate(margin: Tensor) -> Tensor:
        return logistic(margin) - slope * margin

    return margin_terms(inputs, pair_up(inputs), beta, surrogate, **options)


def ipo(
    inputs: LossInputs,
    *,
    tau: float,
    length_normalized: bool,
    label_smoothing: float,
    **options: Unpack[ScoreOptions],
) -> Terms:
    """IPO: ``(h - 1 / (2 tau))^2`` (arXiv 2310.12036).

    The implicit rewards are tau D.

    Args:
        tau: strength of the pull to the reference: the margin's target is 1 / (2 tau).
        length_normalized: whether D is a mean over tokens instead of the paper's sum.
    """
    check_positive("tau", tau)

    def surrogate(margin: Tensor) -> Tensor:
        return ((margin - 0.5) / tau).square()

    return margin_terms(
        inputs,
        pair_up(inputs),
        tau,
        smoothed(surrogate, label_smoothing),
        length_normalized=length_normalized,
        squared=True,
        **options,
    )


def hinge(
    inputs: LossInputs, *, beta: float, label_smoothing: float, **options: Unpack[ScoreOptions]
) -> Terms:
    """``max(0, 1 - u)`` (SLiC's hinge on normalised margins, RSO, arXiv 2309.06657)."""
    check_positive("beta", beta)

    def surrogate(margin: Tensor) -> Tensor:
        return F.relu(1 - margin)

    return margin_terms(
        inputs, pair_up(inputs), beta, smoothed(surrogate, label_smoothing), **options
    )


def exo_pair(
    inputs: LossInputs, *, beta: float, label_smoothing: float, **options: Unpack[ScoreOptions]
) -> Terms:
    """EXO: KL of Bernoulli(sigmoid(u)) to Bernoulli(1 - e) (arXiv 2402.00856).

    Args:
        label_smoothing: e, the target probability of the rejected response, above 0 and below 1.
    """
    check_positive("beta", beta)
    if not 0 < label_smoothing < 1:
        fix = "The target probability of the rejected response; the paper recommends 1e-3."
        raise InputError("label_smoothing", "a number in (0, 1)", label_smoothing, fix)
    target = math.log1p(-label_smoothing) - math.log(label_smoothing)

    def surrogate(margin: Tensor) -> Tensor:
        return bernoulli_kl(margin, margin.new_full((), target))

    return margin_terms(inputs, pair_up(inputs), beta, surrogate, **options)


def discopop(
    inputs: LossInputs, *, beta: float, tau: float, **options: Unpack[ScoreOptions]
) -> Terms:
    """DiscoPOP: ``(1 - g) sp(-u) + g exp(-u)``, ``g = sigmoid(u / tau)`` (arXiv 2406.08414).

    At u = 0 the slope is positive for tau = 0.05: the first step shrinks the margin.

    Args:
        tau: temperature of the gate g between the logistic and the exponential loss.
    """
    check_positive("beta", beta)
    check_positive("tau", tau)

    def surrogate(margin: Tensor) -> Tensor:
        exponential = expm1(-margin + F.logsigmoid(margin / tau)) + 1
        return torch.sigmoid(-margin / tau) * logistic(margin) + exponential

    return margin_terms(inputs, pair_up(inputs), beta, surrogate, **options)


def r_dpo(
    inputs: LossInputs,
    *,
    beta: float,
    alpha: float,
    label_smoothing: float,
    **options: Unpack[ScoreOptions],
) -> Terms:
    """Length-regularised DPO: ``sp(-(u + alpha (n_w - n_l)))`` (arXiv 2403.19159).

    Args:
        alpha: cost per token on the reward: a chosen response that is longer teaches less.
    """
    check_positive("beta", beta)
    pairs = pair_up(inputs)
    longer = inputs.lengths[pairs.chosen] - inputs.lengths[pairs.rejected]
    smooth = smoothed(logistic, label_smoothing)

    def surrogate(margin: Tensor) -> Tensor:
        return smooth(margin + alpha * longer.double())

    return margin_terms(inputs, pairs, beta, surrogate, **options)


def dpo_nll(
    inputs: LossInputs,
    *,
    beta: float,
    sft_weight: float,
    label_smoothing: float,
    **options: Unpack[ScoreOptions],
) -> Terms:
    """DPO with likelihood: ``sp(-u) - sft_weight l_w / n_w`` (Iterative RPO, arXiv 2404.19733)."""
    check_not_negative("sft_weight", sft_weight)
    terms = dpo(inputs, beta=beta, label_smoothing=label_smoothing, **options)
    nll = -per_token(inputs.logps, inputs)[pair_up(inputs).chosen]
    return Terms(terms.values + sft_weight * nll, {**terms.metrics, "nll_loss": nll.mean()})


def aot(inputs: LossInputs, *, beta: float, label_smoothing: float) -> Terms:
    """AOT: ``sp(-beta (m_(k) - mref_(k)))``, m = l_w - l_l, each sorted (arXiv 2406.05882).

    Value k belongs to rank k, not to pair k. The sort couples the pairs of one call: the parts of
    a batch do not add up to the whole.
    """
    check_positive("beta", beta)
    pairs = pair_up(inputs)
    chosen, rejected = pairs.split(inputs.logps)
    ref_chosen, ref_rejected = pairs.split(reference_logps(inputs))
    gap = (chosen - rejected).sort().values - (ref_chosen - ref_rejected).sort().values
    values = smoothed(logistic, label_smoothing)(beta * gap)
    return Terms(values, pair_metrics(inputs, pairs, beta * log_ratios(inputs)))


ROWS: tuple[LossSpec, ...] = (
    margin_row(
        "sigmoid",
        "DPO",
        dpo,
        {"beta": 0.1, "label_smoothing": 0.0},
        "Rafailov et al. 2023, Direct Preference Optimization, arXiv 2305.18290, Eq. 7",
        defaults_from="beta 0.1 is the paper's (Appendix B) and TRL's.",
        notes=("TRL's sigmoid and Liger's ignore label_smoothing.",),
    ),
    margin_row(
        "cdpo",
        "cDPO",
        dpo,
        {"beta": 0.1, "label_smoothing": 0.1},
        "Mitchell 2023, A note on DPO with noisy preferences, ericmitchell.ai/cdpo.pdf",
        defaults_from="beta 0.1 is DPO's, label_smoothing 0.1 that of `robust`.",
        notes=("Has no key in TRL and Liger; HALOs smooths by 0.2.",),
    ),
    margin_row(
        "robust",
        "Robust DPO",
        robust,
        {"beta": 0.1, "label_smoothing": 0.1},
        "Chowdhury et al. 2024, Provably Robust DPO, arXiv 2403.00409, Sec. 3.1",
        defaults_from=(
            "label_smoothing 0.1 is the paper's (Sec. 6); beta 0.1 is TRL's default, "
            "the paper's is 0.01."
        ),
        notes=("TRL smooths by 0 unless told, which is sigmoid.",),
    ),
    margin_row(
        "sigmoid_norm",
        "Length-normalised DPO",
        sigmoid_norm,
        {"beta": 0.1, "label_smoothing": 0.0},
        "Lambert et al. 2024, Tulu 3, arXiv 2411.15124",
        defaults_from=(
            "beta 0.1 is TRL's; of a mean log-ratio it is small, and the Tulu 3 "
            "models were trained with 5."
        ),
        notes=("TRL divides by the length of the mask, which counts the same tokens.",),
    ),
    margin_row(
        "ipo",
        "IPO",
        ipo,
        {"tau": 0.1, "length_normalized": False, "label_smoothing": 0.0},
        "Azar et al. 2023, A General Theoretical Paradigm (IPO), arXiv 2310.12036, Eq. 17",
        defaults_from="tau 0.1 is TRL's beta.",
        notes=(
            "Sums over tokens as in the paper, OpenRLHF and NeMo-Aligner; TRL, HALOs, AReaL, "
            "LLaMA-Factory and ms-swift take means (length_normalized=True). TRL's beta is tau.",
        ),
    ),
    margin_row(
        "hinge",
        "RSO hinge",
        hinge,
        {"beta": 0.1, "label_smoothing": 0.0},
        "Liu et al. 2023, Statistical Rejection Sampling Optimization, arXiv 2309.06657",
        defaults_from="beta 0.1 is TRL's.",
    ),
    margin_row(
        "exo_pair",
        "EXO-pair",
        exo_pair,
        {"beta": 0.1, "label_smoothing": 1e-3},
        "Ji et al. 2024, Efficient Exact Optimization, arXiv 2402.00856, Sec. 3.2",
        defaults_from="beta 0.1 (its beta_r, Appendix B) and label_smoothing 1e-3 are the paper's.",
        notes=(
            "The authors' code takes log-probabilities 0 and -10 for the two targets. TRL smooths "
            "by 0 unless told, and refuses that.",
        ),
    ),
    margin_row(
        "discopop",
        "DiscoPOP",
        discopop,
        {"beta": 0.05, "tau": 0.05},
        "Lu et al. 2024, Discovered Preference Optimization, arXiv 2406.08414, Sec. 3",
        defaults_from="the paper's (Appendices B and E).",
        notes=(
            "TRL and Liger multiply g by exp(-u): NaN where that overflows, from u = -88 down in "
            "fp32. Here the product is one exponential.",
        ),
    ),
    margin_row(
        "dpo_nll",
        "DPO+NLL",
        dpo_nll,
        {"beta": 0.1, "sft_weight": 1.0, "label_smoothing": 0.0},
        "Pang et al. 2024, Iterative Reasoning Preference Optimization, arXiv 2404.19733, Eq. 1",
        defaults_from="the paper's.",
        notes=(
            'The likelihood is a mean over tokens for each pair. TRL\'s loss_type=["sigmoid", '
            '"sft"] takes it over all tokens: LOSSES.combine({"sigmoid": 1.0, "sft": 1.0}).',
        ),
    ),
    margin_row(
        "r_dpo",
        "R-DPO",
        r_dpo,
        {"beta": 0.1, "alpha": 0.01, "label_smoothing": 0.0},
        "Park et al. 2024, Disentangling Length from Quality in DPO, arXiv 2403.19159",
        defaults_from="beta 0.1 is DPO's; alpha 0.01 per token is to be set for the data.",
        notes=(
            "The sign follows from the paper's penalty of alpha per token on the reward; it is "
            "printed the other way round in some tables, which is a negative alpha here.",
        ),
    ),
    LossSpec(
        name="aot",
        title="AOT",
        unit="pair",
        terms=aot,
        weights=pair_weights,
        needs=(*PAIR, REFERENCE),
        defaults={"beta": 0.01, "label_smoothing": 0.0},
        paper="Melnyk et al. 2024, Alignment via Optimal Transport, arXiv 2406.05882, Sec. 3",
        defaults_from="beta 0.01; TRL's is 0.1.",
        notes=("Sorted over the pairs of one call; TRL sorts over those of one device.",),
    ),
)
