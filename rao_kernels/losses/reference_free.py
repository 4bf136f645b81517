"""Pair losses without a reference model.

SimPO (`simpo`), AlphaPO (`alphapo`), CPO (`cpo`), SLiC-HF (`slic`), ORPO (`orpo`), and on triples
TPO (`tpo`).

Legend: w chosen, l rejected; L log-probability of a response, n its length in tokens, lbar = L / n;
sp(a) = log(1 + exp(a)); NLL(w) mean of -log p over the tokens of all chosen responses; P pairs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ._inputs import LossInputs
from ._spec import PAIR, LossSpec
from ._terms import (
    Pairs,
    Terms,
    check_not_negative,
    check_positive,
    logistic,
    order_within_groups,
    pair_metrics,
    pair_terms,
    pair_up,
    pair_weights,
    per_token,
)
from .modifiers import expm1, smoothed


def simpo(inputs: LossInputs, *, beta: float, gamma: float, label_smoothing: float) -> Terms:
    """SimPO: ``sp(gamma - beta (lbar_w - lbar_l))``, mean over pairs.

    Meng et al. 2024, arXiv 2405.14734, Eq. 6.

    Args:
        beta: scale of the implicit reward beta lbar, in reward per nat of mean log-probability.
        gamma: target margin between the implicit rewards, in reward.
        label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off.

    Returns:
        Values ``[P]``.
    """
    scores = check_positive("beta", beta) * per_token(inputs.logps, inputs)
    return _beyond_margin(inputs, scores, gamma, label_smoothing)


def alphapo(
    inputs: LossInputs, *, beta: float, gamma: float, alpha: float, label_smoothing: float
) -> Terms:
    """AlphaPO: ``sp(gamma - (R_w - R_l))``, ``R = beta (1 - exp(-alpha lbar)) / alpha``.

    Gupta et al. 2025, arXiv 2501.03884. Mean over pairs.

    Args:
        beta: scale of the implicit reward R, in reward per nat of mean log-probability.
        gamma: target margin between the implicit rewards, in reward.
        alpha: shape of the reward; 0 is SimPO.
        label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off.

    Returns:
        Values ``[P]``.
    """
    means = per_token(inputs.logps, inputs)
    shaped = means if alpha == 0 else -expm1(-alpha * means) / alpha
    return _beyond_margin(inputs, check_positive("beta", beta) * shaped, gamma, label_smoothing)


def _beyond_margin(
    inputs: LossInputs, scores: Tensor, gamma: float, label_smoothing: float
) -> Terms:
    """Return ``log(1 + exp(gamma - (score_w - score_l)))`` of scores ``[S]``."""
    surrogate = smoothed(logistic, label_smoothing)
    return pair_terms(inputs, scores, lambda margin: surrogate(margin - gamma))


def cpo(inputs: LossInputs, *, beta: float, sft_weight: float, label_smoothing: float) -> Terms:
    """CPO: ``sp(-beta (L_w - L_l)) + sft_weight NLL(w)``, mean over pairs.

    Xu et al. 2024, arXiv 2401.08417.

    Args:
        beta: scale of the implicit reward beta L, in reward per nat.
        sft_weight: weight of the chosen responses' NLL, 0 or more; 0 is off.
        label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off.

    Returns:
        Values ``[P]``.
    """
    scores = check_positive("beta", beta) * inputs.logps
    terms = pair_terms(inputs, scores, smoothed(logistic, label_smoothing))
    return _with_nll(terms, batch_nll(inputs, pair_up(inputs).chosen), sft_weight)


def slic(inputs: LossInputs, *, margin: float, sft_weight: float) -> Terms:
    """SLiC-HF: ``max(0, margin - (L_w - L_l)) - sft_weight L_w``, mean over pairs.

    Zhao et al. 2023, arXiv 2305.10425, Sec. 2. At the kink the subgradient is 0.

    Args:
        margin: target margin between the log-probabilities, in nats.
        sft_weight: weight of the chosen response's likelihood, 0 or more; 0 is off.

    Returns:
        Values ``[P]``.
    """
    logps = inputs.logps
    terms = pair_terms(inputs, logps, lambda difference: F.relu(margin - difference))
    return _with_nll(terms, -pair_up(inputs).split(logps)[0], sft_weight)


def orpo(inputs: LossInputs, *, lam: float) -> Terms:
    """ORPO: ``-lbar_w + lam sp(-(o_w - o_l))``, ``o = lbar - log(1 - exp(lbar))``, mean over pairs.

    Hong et al. 2024, arXiv 2403.07691, Eq. 6. The implicit rewards are the log-odds o.

    Args:
        lam: weight of the odds-ratio term beside the likelihood, 0 or more.

    Returns:
        Values ``[P]``.
    """
    check_not_negative("lam", lam)
    means = per_token(inputs.logps, inputs)
    terms = pair_terms(inputs, log_odds(means, inputs.dtype), lambda margin: lam * logistic(margin))
    return _with_nll(terms, -pair_up(inputs).split(means)[0], 1.0)


def log_odds(logps: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``log(p / (1 - p))`` of fp64 log-probabilities that were computed in `dtype`.

    From the largest p below 1 in `dtype` (1 - 2^-24 in fp32) on it continues as its tangent, as the
    odds are infinite at p = 1. The gradient ``1 / (1 - p)`` is exact up to there, stays finite
    (1.7e7 in fp32) and never vanishes.
    """
    nearest = -torch.finfo(dtype).eps / 2
    beyond = F.relu(logps - nearest)
    clamped = logps - beyond
    return clamped - log1mexp(clamped) - beyond / math.expm1(nearest)


def log1mexp(negative: Tensor) -> Tensor:
    """Return ``log(1 - exp(x))`` of x < 0, accurate near 0 and for large -x."""
    # Each branch gets only arguments it is exact for: a NaN in the unused one would reach the
    # gradient.
    return torch.where(
        negative > -math.log(2),
        (-torch.expm1(negative.clamp(min=-1.0))).log(),
        torch.log1p(-negative.clamp(max=-0.5).exp()),
    )


def tpo(
    inputs: LossInputs,
    *,
    beta: float,
    sft_weight: float,
    length_normalized: bool,
    gamma: float,
    label_smoothing: float,
) -> Terms:
    """TPO: ``sp(gamma - beta (L_w - L_l)) + sft_weight NLL(gold)``, mean over triples.

    Saeidi et al. 2024, arXiv 2405.16681. A triple is three responses to a prompt: the gold one, and
    of the other two the preferred (w) and the rejected (l).

    Args:
        beta: scale of the implicit reward beta L, in reward per nat.
        sft_weight: weight of the gold responses' NLL, 0 or more; 0 is off.
        length_normalized: True takes lbar in place of L (TPO-L).
        gamma: target margin between the implicit rewards, in reward.
        label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off.

    Returns:
        Values ``[P]``, one per triple.
    """
    logps = inputs.logps
    scores = check_positive("beta", beta) * (
        per_token(logps, inputs) if length_normalized else logps
    )
    gold, pairs = triple_up(inputs)
    chosen, rejected = pairs.split(scores)
    values = smoothed(logistic, label_smoothing)(chosen - rejected - gamma)
    terms = Terms(values, pair_metrics(inputs, pairs, scores))
    return _with_nll(terms, batch_nll(inputs, gold), sft_weight)


def triple_up(inputs: LossInputs) -> tuple[Tensor, Pairs]:
    """Return gold sequences ``[P]`` and the pairs of the other two in each group of three.

    A group of another composition raises where the inputs are on the CPU, and gives NaN elsewhere.
    """
    groups = inputs.require("groups")
    gold, preferred = inputs.require("gold").bool(), inputs.require("preferred").bool()
    if groups.numel() % 3:
        raise _triple_error(groups)
    rank = gold.long() * 2 + (preferred & ~gold).long()
    order = order_within_groups(rank, groups, descending=True).view(-1, 3)
    same = (groups[order] == groups[order[:, :1]]).all(1)
    ranked = rank[order]
    valid = same & (ranked[:, 0] == 2) & (ranked[:, 1] == 1) & (ranked[:, 2] == 0)
    if groups.device.type == "cpu" and not bool(valid.all()):
        raise _triple_error(groups[order[~valid][0]])
    nan_if_invalid = torch.zeros(len(order), dtype=torch.float64, device=groups.device)
    pairs = Pairs(order[:, 1], order[:, 2], nan_if_invalid.masked_fill(~valid, torch.nan))
    return order[:, 0], pairs


def _triple_error(groups: Tensor) -> InputError:
    return InputError(
        "gold",
        "three sequences in each group: one gold, and of the others one preferred",
        f"{groups.numel()} sequences" if groups.numel() % 3 else f"group {int(groups[0])}",
    )


def batch_nll(inputs: LossInputs, sequences: Tensor) -> Tensor:
    """Return ``[P]`` values whose mean is the token-mean NLL of `sequences`."""
    count = inputs.lengths[sequences].sum().clamp(min=1).double()
    return -inputs.logps[sequences] * (len(sequences) / count)


def _with_nll(terms: Terms, nll: Tensor, weight: float) -> Terms:
    """Return `terms` with ``weight * nll`` ``[P]`` added."""
    check_not_negative("sft_weight", weight)
    mean = nll.detach().sum() / max(len(nll), 1)
    return Terms(terms.values + weight * nll, {**terms.metrics, "nll_loss": mean})


def triple_weights(inputs: LossInputs) -> Tensor:
    """Return ``[P]`` ones, one for each three sequences."""
    device = inputs.token_logps.device
    return torch.ones(inputs.num_sequences // 3, dtype=torch.float64, device=device)


_NLL_NOTE = (
    "The NLL is a token mean over this batch, as in TRL and Liger; under a shared normaliser each "
    "batch is weighted by its number of pairs."
)

ROWS: tuple[LossSpec, ...] = (
    LossSpec(
        name="simpo",
        title="SimPO",
        unit="pair",
        terms=simpo,
        weights=pair_weights,
        needs=PAIR,
        defaults={"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0},
        paper=(
            "Meng et al. 2024, SimPO: Simple Preference Optimization with a Reference-Free Reward, "
            "arXiv 2405.14734, Eq. 6"
        ),
        defaults_from=(
            "within the ranges that the paper recommends, beta 2 to 2.5 and gamma 0.5 to 1.5."
        ),
        notes=(
            "gamma is the margin itself, as in the paper, TRL (simpo_gamma) and Liger; the "
            "authors' code takes gamma / beta. TRL's defaults are beta 0.1, gamma 0.5 and an NLL "
            "term (cpo_alpha 1): for that, combine with `sft`.",
        ),
    ),
    LossSpec(
        name="alphapo",
        title="AlphaPO",
        unit="pair",
        terms=alphapo,
        weights=pair_weights,
        needs=PAIR,
        defaults={"beta": 2.5, "gamma": 0.1, "alpha": 0.25, "label_smoothing": 0.0},
        paper=(
            "Gupta et al. 2025, AlphaPO: Reward Shape Matters for LLM Alignment, arXiv 2501.03884"
        ),
        defaults_from="the paper's for Mistral-Instruct (Table 3).",
        notes=(
            "TRL (`loss_type='simpo'` with alpha) computes p = exp(lbar) and p^-alpha, infinite "
            "once p underflows; here R is one expm1, continued as its tangent from e^20 on.",
        ),
    ),
    LossSpec(
        name="cpo",
        title="CPO",
        unit="pair",
        terms=cpo,
        weights=pair_weights,
        needs=PAIR,
        defaults={"beta": 0.1, "sft_weight": 1.0, "label_smoothing": 0.0},
        paper="Xu et al. 2024, Contrastive Preference Optimization, arXiv 2401.08417",
        defaults_from="TRL's.",
        notes=(
            _NLL_NOTE,
            "The authors' repository now scales the rejected term by a penalty on lengths; that "
            "is not offered.",
        ),
    ),
    LossSpec(
        name="slic",
        title="SLiC-HF",
        unit="pair",
        terms=slic,
        weights=pair_weights,
        needs=PAIR,
        defaults={"margin": 1.0, "sft_weight": 0.1},
        paper=(
            "Zhao et al. 2023, SLiC-HF: Sequence Likelihood Calibration with Human Feedback, arXiv "
            "2305.10425, Sec. 2"
        ),
        defaults_from="those of HALOs.",
        notes=("The target of the regularisation is the chosen response, summed, as in HALOs.",),
    ),
    LossSpec(
        name="orpo",
        title="ORPO",
        unit="pair",
        terms=orpo,
        weights=pair_weights,
        needs=PAIR,
        defaults={"lam": 0.1},
        paper=(
            "Hong et al. 2024, ORPO: Monolithic Preference Optimization without Reference Model "
            "(Odds Ratio Preference Optimization), arXiv 2403.07691, Eq. 6"
        ),
        defaults_from="the paper's for Mistral (7B), and TRL's.",
        notes=(
            "The NLL is minus the chosen response's mean log-probability, averaged over pairs, as "
            "in LLaMA-Factory. TRL's is a token mean over the batch and over prompt and response, "
            "Liger's a token mean over the responses.",
            "TRL's lam is called beta. At p = 1 TRL, Liger and the authors' code give infinities; "
            "here the log-odds continue as their tangent from lbar = -2^-24, fp32's limit.",
        ),
    ),
    LossSpec(
        name="tpo",
        title="TPO",
        unit="pair",
        terms=tpo,
        weights=triple_weights,
        needs=(*PAIR, "gold"),
        defaults={
            "beta": 0.01,
            "sft_weight": 1.0,
            "length_normalized": False,
            "gamma": 0.0,
            "label_smoothing": 0.0,
        },
        paper="Saeidi et al. 2024, Triple Preference Optimization, arXiv 2405.16681",
        defaults_from="TRL's.",
        notes=(
            _NLL_NOTE,
            "TRL's 'tpo-l' is `length_normalized=True` with gamma 0.5; its 'hinge' and 'ipo' forms "
            "are not offered.",
        ),
    ),
)
