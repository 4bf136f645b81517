"""Pair losses with a reference that put another function of the margin in place of DPO's.

IPO (`ipo`), RSO hinge (`hinge`), EXO-pair (`exo_pair`), DiscoPOP (`discopop`).

Legend: w chosen, l rejected; D log-ratio of a response to the reference, h = D_w - D_l,
u = beta h; sp(a) = log(1 + exp(a)); P pairs. With the option `f_divergence`, its score replaces D
(f-DPO, see `modifiers`).
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ._inputs import LossInputs
from ._spec import LossSpec
from ._terms import Terms, bernoulli_kl, check_positive, logistic, pair_up
from .modifiers import ScoreOptions, expm1, margin_row, margin_terms, smoothed


def ipo(
    inputs: LossInputs,
    *,
    tau: float,
    length_normalized: bool,
    label_smoothing: float,
    **options: Unpack[ScoreOptions],
) -> Terms:
    """IPO: ``(h - 1 / (2 tau))^2``, mean over pairs.

    Azar et al. 2023, arXiv 2310.12036, Eq. 17.

    Args:
        tau: KL coefficient, in reward per nat: the margin's target is 1 / (2 tau) nats. The
            implicit reward is tau D.
        length_normalized: True takes D as a mean over tokens, False as a sum.
        label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``.
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
    """RSO hinge: ``max(0, 1 - u)``, mean over pairs.

    Liu et al. 2023, arXiv 2309.06657: the hinge of SLiC on margins relative to the reference.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``.
    """
    check_positive("beta", beta)

    def surrogate(margin: Tensor) -> Tensor:
        return F.relu(1 - margin)

    return margin_terms(
        inputs, pair_up(inputs), beta, smoothed(surrogate, label_smoothing), **options
    )


def exo_pair(
    inputs: LossInputs, *, beta: float, label_smoothing: float, **options: Unpack[ScoreOptions]
) -> Terms:
    """EXO-pair: KL of Bernoulli(sigmoid(u)) to Bernoulli(1 - e), mean over pairs.

    Ji et al. 2024, arXiv 2402.00856, Eq. 16.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        label_smoothing: e, the target probability of the rejected response, above 0 and below 1.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``.
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
    """DiscoPOP: ``(1 - g) sp(-u) + g exp(-u)``, ``g = sigmoid(u / tau)``, mean over pairs.

    Lu et al. 2024, arXiv 2406.08414, Eq. 5. At u = 0 the slope is positive for tau = 0.05: the
    first step shrinks the margin.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        tau: temperature, in reward, of the gate g between the logistic and the exponential loss.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``.
    """
    check_positive("beta", beta)
    check_positive("tau", tau)

    def surrogate(margin: Tensor) -> Tensor:
        exponential = expm1(-margin + F.logsigmoid(margin / tau)) + 1
        return torch.sigmoid(-margin / tau) * logistic(margin) + exponential

    return margin_terms(inputs, pair_up(inputs), beta, surrogate, **options)


ROWS: tuple[LossSpec, ...] = (
    margin_row(
        "ipo",
        "IPO",
        ipo,
        {"tau": 0.1, "length_normalized": False, "label_smoothing": 0.0},
        (
            "Azar et al. 2023, A General Theoretical Paradigm to Understand Learning from Human "
            "Preferences, arXiv 2310.12036, Eq. 17"
        ),
        defaults_from="tau 0.1 is TRL's beta.",
        notes=(
            "Sums over tokens as Eq. 17 reads, and as in OpenRLHF and NeMo-Aligner; TRL, HALOs, "
            "AReaL, LLaMA-Factory and ms-swift take means (length_normalized=True), which is what "
            "the authors meant according to TRL. TRL's beta is tau.",
        ),
    ),
    margin_row(
        "hinge",
        "RSO hinge",
        hinge,
        {"beta": 0.1, "label_smoothing": 0.0},
        (
            "Liu et al. 2023, Statistical Rejection Sampling Improves Preference Optimization, "
            "arXiv 2309.06657"
        ),
        defaults_from="beta 0.1 is TRL's.",
    ),
    margin_row(
        "exo_pair",
        "EXO-pair",
        exo_pair,
        {"beta": 0.1, "label_smoothing": 1e-3},
        (
            "Ji et al. 2024, Towards Efficient Exact Optimization of Language Model Alignment, "
            "arXiv 2402.00856, Eq. 16"
        ),
        defaults_from="beta 0.1 (Appendix B) and label_smoothing 1e-3 are the paper's.",
        notes=(
            "The authors' code takes log-probabilities 0 and -10 for the two targets. TRL's "
            "default label_smoothing is 0, which it refuses for this loss.",
        ),
    ),
    margin_row(
        "discopop",
        "DiscoPOP",
        discopop,
        {"beta": 0.05, "tau": 0.05},
        (
            "Lu et al. 2024, Discovering Preference Optimization Algorithms with and for Large "
            "Language Models, arXiv 2406.08414, Eq. 5"
        ),
        defaults_from="the paper's (Appendices B and E).",
        notes=(
            "TRL and Liger multiply g by exp(-u): NaN where that overflows, from u = -88 down in "
            "fp32. Here the product is one exponential.",
        ),
    ),
)
