"""Pair losses with a reference that are not functions of the margin alone.

Cal-DPO (`cal_dpo`), DPOP or DPO-Positive (`dpop`), DPO-Shift (`dpo_shift`), APO-down (`apo_down`),
APO-zero (`apo_zero`), NCA-pair (`nca_pair`), BCO-pair (`bco_pair`), SPPO-hard (`sppo_hard`).

Legend: w chosen, l rejected; D log-ratio of a response to the reference, h = D_w - D_l, a = beta D,
u = beta h; sp(x) = log(1 + exp(x)); P pairs. These losses fix the level of D, not only the gap. The
log-partition function does not cancel, so that the option `f_divergence` is not defined for them.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ._inputs import LossInputs
from ._spec import LossSpec
from ._terms import Terms, check_fraction, check_not_negative, logistic
from .modifiers import PairOptions, pair_row, pointwise_terms


def cal_dpo(
    inputs: LossInputs, *, beta: float, calibration_weight: float, **options: Unpack[PairOptions]
) -> Terms:
    """Cal-DPO: ``sp(-h) + w ((D_w - 1 / (2 beta))^2 + (D_l + 1 / (2 beta))^2)``, mean over pairs.

    Xiao et al. 2024, arXiv 2412.14516. The contrastive term has no beta.

    Args:
        beta: KL coefficient, in reward per nat: the targets of D are +-1 / (2 beta) nats.
        calibration_weight: w, the weight of the two squares, 0 or more.
        options: see `PairOptions`.

    Returns:
        Values ``[P]``.
    """

    check_not_negative("calibration_weight", calibration_weight)

    def surrogate(chosen: Tensor, rejected: Tensor) -> Tensor:
        contrast = logistic((chosen - rejected) / beta)
        return contrast + calibration_weight * _squares_to_half(chosen, rejected, beta)

    return pointwise_terms(inputs, beta, surrogate, **options)


def sppo_hard(inputs: LossInputs, *, beta: float, **options: Unpack[PairOptions]) -> Terms:
    """SPPO-hard: ``(D_w - 1 / (2 beta))^2 + (D_l + 1 / (2 beta))^2``, mean over pairs.

    Wu et al. 2024, arXiv 2405.00675, Eq. 4.7, at win probabilities 1 and 0.

    Args:
        beta: KL coefficient, in reward per nat, 1 / eta of the paper: the targets of D are +-1 / (2
            beta) nats.
        options: see `PairOptions`.

    Returns:
        Values ``[P]``.
    """

    def surrogate(chosen: Tensor, rejected: Tensor) -> Tensor:
        return _squares_to_half(chosen, rejected, beta)

    return pointwise_terms(inputs, beta, surrogate, **options)


def _squares_to_half(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Return ``((a_w - 1/2)^2 + (a_l + 1/2)^2) / beta^2``."""
    return (((chosen - 0.5) / beta).square()) + ((rejected + 0.5) / beta).square()


def dpop(
    inputs: LossInputs, *, beta: float, dpop_lambda: float, **options: Unpack[PairOptions]
) -> Terms:
    """DPOP (DPO-Positive): ``sp(-beta (h - dpop_lambda max(0, -D_w)))``, mean over pairs.

    Pal et al. 2024, arXiv 2402.13228. The penalty is inside the sigmoid: it lowers the margin where
    the chosen response is less likely than under the reference.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        dpop_lambda: weight of the penalty relative to the margin, 0 or more; 0 is DPO.
        options: see `PairOptions`.

    Returns:
        Values ``[P]``.
    """

    check_not_negative("dpop_lambda", dpop_lambda)

    def surrogate(chosen: Tensor, rejected: Tensor) -> Tensor:
        return logistic(chosen - rejected - dpop_lambda * F.relu(-chosen))

    return pointwise_terms(inputs, beta, surrogate, **options)


def dpo_shift(
    inputs: LossInputs, *, beta: float, shift: float, **options: Unpack[PairOptions]
) -> Terms:
    """DPO-Shift: ``sp(-beta (D_w - shift D_l))``, mean over pairs.

    Yang et al. 2025, arXiv 2502.07599.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        shift: weight of the rejected response, from 0 to 1; 1 is DPO.
        options: see `PairOptions`.

    Returns:
        Values ``[P]``.
    """
    check_fraction("shift", shift)

    def surrogate(chosen: Tensor, rejected: Tensor) -> Tensor:
        return logistic(chosen - shift * rejected)

    return pointwise_terms(inputs, beta, surrogate, **options)


def apo_zero(inputs: LossInputs, *, beta: float, **options: Unpack[PairOptions]) -> Terms:
    """APO-zero: ``sigmoid(-a_w) + sigmoid(a_l)``, mean over pairs.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, Eq. 7.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is a = beta D.
        options: see `PairOptions`.

    Returns:
        Values ``[P]``.
    """

    def surrogate(chosen: Tensor, rejected: Tensor) -> Tensor:
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected)

    return pointwise_terms(inputs, beta, surrogate, **options)


def apo_down(inputs: LossInputs, *, beta: float, **options: Unpack[PairOptions]) -> Terms:
    """APO-down: ``sigmoid(a_w) + sigmoid(-u)``, mean over pairs.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, Eq. 8.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is a = beta D.
        options: see `PairOptions`.

    Returns:
        Values ``[P]``.
    """

    def surrogate(chosen: Tensor, rejected: Tensor) -> Tensor:
        return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)

    return pointwise_terms(inputs, beta, surrogate, **options)


def nca_pair(inputs: LossInputs, *, beta: float, **options: Unpack[PairOptions]) -> Terms:
    """NCA-pair: ``sp(-a_w) + sp(a_w) / 2 + sp(a_l) / 2``, mean over pairs.

    Chen et al. 2024, arXiv 2402.05369, Sec. 4.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is a = beta D.
        options: see `PairOptions`.

    Returns:
        Values ``[P]``.
    """

    def surrogate(chosen: Tensor, rejected: Tensor) -> Tensor:
        return logistic(chosen) + 0.5 * logistic(-chosen) + 0.5 * logistic(-rejected)

    return pointwise_terms(inputs, beta, surrogate, **options)


def bco_pair(
    inputs: LossInputs, *, beta: float, delta: Tensor | float, **options: Unpack[PairOptions]
) -> Terms:
    """BCO-pair: ``sp(-(a_w - delta)) + sp(a_l - delta)``, mean over pairs.

    Jung et al. 2024, arXiv 2404.04656.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is a = beta D.
        delta: level of the implicit rewards a: a running mean that the caller keeps; no gradient.
        options: see `PairOptions`.

    Returns:
        Values ``[P]``.
    """
    if isinstance(delta, Tensor) and delta.dim() != 0:
        raise InputError("delta", "one number", f"a tensor of shape {list(delta.shape)}")
    level = delta.detach().double() if isinstance(delta, Tensor) else delta

    def surrogate(chosen: Tensor, rejected: Tensor) -> Tensor:
        return logistic(chosen - level) + logistic(level - rejected)

    return pointwise_terms(inputs, beta, surrogate, **options)


ROWS: tuple[LossSpec, ...] = (
    pair_row(
        "cal_dpo",
        "Cal-DPO",
        cal_dpo,
        {"beta": 0.1, "calibration_weight": 1.0},
        (
            "Xiao et al. 2024, Cal-DPO: Calibrated Direct Preference Optimization for Language "
            "Model Alignment, arXiv 2412.14516"
        ),
        defaults_from="beta 0.1 is DPO's; calibration_weight 1 is the paper's form.",
        notes=("The authors' code weighs the calibration by 1/2.",),
    ),
    pair_row(
        "dpop",
        "DPOP",
        dpop,
        {"beta": 0.3, "dpop_lambda": 50.0},
        (
            "Pal et al. 2024, Smaug: Fixing Failure Modes of Preference Optimisation with "
            "DPO-Positive, arXiv 2402.13228"
        ),
        defaults_from="the paper's.",
        notes=("Some public code puts the penalty outside the sigmoid, where it is a reward.",),
    ),
    pair_row(
        "dpo_shift",
        "DPO-Shift",
        dpo_shift,
        {"beta": 0.1, "shift": 0.95},
        (
            "Yang et al. 2025, DPO-Shift: Shifting the Distribution of Direct Preference "
            "Optimization, arXiv 2502.07599"
        ),
        defaults_from="beta 0.1 is DPO's; shift 0.95 is one of the authors' fixed values.",
        notes=("The authors also vary the shift over the steps; here the caller does.",),
    ),
    pair_row(
        "apo_down",
        "APO-down",
        apo_down,
        {"beta": 0.1},
        (
            "D'Oosterlinck et al. 2024, Anchored Preference Optimization and Contrastive "
            "Revisions, arXiv 2408.06266, Eq. 8"
        ),
        defaults_from="the paper's (Sec. 5.2).",
        notes=("TRL and Liger compute 1 - sigmoid(a), which is 0 in fp32 from a = 17 on.",),
    ),
    pair_row(
        "apo_zero",
        "APO-zero",
        apo_zero,
        {"beta": 0.1},
        (
            "D'Oosterlinck et al. 2024, Anchored Preference Optimization and Contrastive "
            "Revisions, arXiv 2408.06266, Eq. 7"
        ),
        defaults_from="the paper's (Sec. 5.2).",
        notes=("TRL and Liger compute 1 - sigmoid(a), which is 0 in fp32 from a = 17 on.",),
    ),
    pair_row(
        "nca_pair",
        "NCA-pair",
        nca_pair,
        {"beta": 0.01},
        (
            "Chen et al. 2024, Noise Contrastive Alignment of Language Models with Explicit "
            "Rewards, arXiv 2402.05369, Sec. 4"
        ),
        defaults_from="the paper's (Appendix C).",
        notes=("TRL's default beta is 0.1.",),
    ),
    pair_row(
        "bco_pair",
        "BCO-pair",
        bco_pair,
        {"beta": 0.01, "delta": 0.0},
        (
            "Jung et al. 2024, Binary Classifier Optimization for Large Language Model Alignment, "
            "arXiv 2404.04656"
        ),
        defaults_from="beta 0.01 is the paper's (Appendix C); delta 0 is TRL's and Liger's.",
        notes=(
            "TRL and Liger take delta = 0 (as here) and beta = 0.1; LLaMA-Factory and ms-swift a "
            "running mean. TRL's paper index prints the sigmoid loss instead.",
        ),
    ),
    pair_row(
        "sppo_hard",
        "SPPO-hard",
        sppo_hard,
        {"beta": 1e-3},
        (
            "Wu et al. 2024, Self-Play Preference Optimization for Language Model Alignment, "
            "arXiv 2405.00675, Eq. 4.7"
        ),
        defaults_from="the paper's, 1 / eta with eta 1000.",
        notes=(
            "Sum over the two responses as in TRL and Liger, whose default beta is 0.1; the "
            "authors' code takes their mean.",
        ),
    ),
)
