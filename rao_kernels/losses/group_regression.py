"""Reward regression on the differences between the responses to a prompt.

Kimi k1.5 (`kimi`), DGRO (`dgro`), AGRO (`agro`), and on pairs REBEL (`rebel`).

Legend: S sequences, k responses per prompt; r reward of a response, D its log-ratio to the
reference, V baseline of the prompt. Every loss is a square of ``target - beta D``, like RAO.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from ..errors import InputError
from ._inputs import LossInputs
from ._spec import PAIR, REFERENCE, LossSpec
from ._terms import (
    Terms,
    check_positive,
    group_logsumexp,
    group_mean,
    group_sizes,
    log_ratios,
    pair_metrics,
    pair_up,
    pair_weights,
    prompt_weights,
    reward_regression,
)

Baseline = Literal["mean", "log_mean_exp"]


def _rewards(inputs: LossInputs) -> Tensor:
    return inputs.require("rewards").double()


def kimi(inputs: LossInputs, *, tau: float, baseline: Baseline) -> Terms:
    """Kimi k1.5: ``(r - V - tau D)^2 / (2 tau)``, mean over prompts of means over responses.

    Kimi Team 2025, arXiv 2501.12599, Eq. 3. The reference is the policy of the previous iteration.
    dL/dD = -(r - V - tau D) / k.

    Args:
        tau: KL coefficient, in reward per nat; the implicit reward is tau D.
        baseline: V. "mean": the group's mean reward. "log_mean_exp": ``tau log mean exp(r / tau)``.

    Returns:
        Values ``[S]``.
    """
    return _group_regression(inputs, 1.0, check_positive("tau", tau), baseline)


def dgro(
    inputs: LossInputs, *, beta1: float, beta2: float, half: bool, baseline: Baseline
) -> Terms:
    """DGRO: ``-beta1 (r - V) D + beta2 D^2 / 2``, completed to a square; mean over prompts.

    Su et al. 2025, arXiv 2505.12951. The value is ``(beta1 (r - V) - b D)^2 / (2 b)`` with b =
    beta2, or 2 beta2 without `half`; the reference is the sampling policy. dL/dD = -(beta1 (r - V)
    - b D) / k.

    Args:
        beta1: scale of the policy gradient.
        beta2: weight of the squared distance to the sampling policy, in reward per nat.
        half: True halves that square, as in the expansion of a KL regulariser; False is the ``beta2
            D^2`` that summaries of the paper print.
        baseline: V. "mean": the group's mean reward. "log_mean_exp": the soft value ``t log mean
            exp(r / t)`` at t = b / beta1, the ratio that determines the optimum.

    Returns:
        Values ``[S]``.
    """
    check_positive("beta1", beta1)
    tau = check_positive("beta2", beta2) * (1 if half else 2)
    return _group_regression(inputs, beta1, tau, baseline)


def _group_regression(
    inputs: LossInputs, reward_scale: float, tau: float, baseline: Baseline
) -> Terms:
    """Return ``(scale (r - V) - tau D)^2 / (2 tau)`` for each response of a group."""
    if baseline not in get_args(Baseline):
        raise InputError("baseline", f"one of {get_args(Baseline)}", repr(baseline))
    rewards = _rewards(inputs)
    if baseline == "mean":
        level = group_mean(rewards, inputs)
    else:
        scale = tau / reward_scale
        mean = group_logsumexp(rewards / scale, inputs) - group_sizes(inputs).double().log()
        level = scale * mean
    target = reward_scale * (rewards - level)
    return reward_regression(inputs, target, tau * log_ratios(inputs), 0.5 / tau)


def agro(inputs: LossInputs, *, beta: float, unbiased: bool) -> Terms:
    """AGRO: half the variance of ``r - beta D`` within each prompt, mean over prompts.

    Tang et al. 2025, arXiv 2503.19612. With ``rho = r - beta D`` the value of a prompt is
    ``sum_i (rho_i - mean rho)^2 / (2 k)``; 0 for a single response.
    dL/dD_i = -beta (rho_i - mean rho) / k.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        unbiased: True divides the variance by k - 1, False by k.

    Returns:
        Values ``[S]``.
    """
    check_positive("beta", beta)
    implicit = beta * log_ratios(inputs)
    level = group_mean(_rewards(inputs) - implicit, inputs)
    sizes = group_sizes(inputs).double()
    scale = 0.5 * sizes / (sizes - 1).clamp(min=1) if unbiased else 0.5
    return reward_regression(inputs, _rewards(inputs) - level, implicit, scale)


def rebel(inputs: LossInputs, *, eta: float) -> Terms:
    """REBEL: ``((D_w - D_l) - eta (r_w - r_l))^2``, mean over pairs of w chosen and l rejected.

    Gao et al. 2024, arXiv 2404.16767. The reference is the policy that sampled; the implicit reward
    is D / eta.

    Args:
        eta: log-ratio per unit of reward, in nats; 1 / beta of other losses.

    Returns:
        Values, one per pair.
    """
    check_positive("eta", eta)
    pairs = pair_up(inputs)
    ratios = log_ratios(inputs)
    chosen, rejected = pairs.split(ratios - eta * _rewards(inputs))
    return Terms((chosen - rejected).square(), pair_metrics(inputs, pairs, ratios / eta))


ROWS: tuple[LossSpec, ...] = (
    LossSpec(
        name="kimi",
        title="Kimi k1.5",
        unit="prompt",
        terms=kimi,
        weights=prompt_weights,
        needs=("rewards", REFERENCE, "groups"),
        defaults={"tau": 0.1, "baseline": "mean"},
        paper=(
            "Kimi Team 2025, Kimi k1.5: Scaling Reinforcement Learning with LLMs, arXiv "
            "2501.12599, Eq. 3"
        ),
        defaults_from="tau 0.1 is DPO's beta; set it for the reward's scale.",
        notes=("Trinity-RFT's k2 regulariser is per token and has no factor 1/2.",),
    ),
    LossSpec(
        name="dgro",
        title="DGRO",
        unit="prompt",
        terms=dgro,
        weights=prompt_weights,
        needs=("rewards", REFERENCE, "groups"),
        defaults={"beta1": 1.0, "beta2": 0.1, "half": True, "baseline": "mean"},
        paper=(
            "Su et al. 2025, DGRO: Enhancing LLM Reasoning via Exploration-Exploitation Control "
            "and Reward Variance Management (Decoupled Group Reward Optimization), arXiv "
            "2505.12951"
        ),
        defaults_from="with beta1 1 and beta2 0.1 the loss is `kimi` at its default.",
    ),
    LossSpec(
        name="agro",
        title="AGRO",
        unit="prompt",
        terms=agro,
        weights=prompt_weights,
        needs=("rewards", REFERENCE, "groups"),
        defaults={"beta": 0.1, "unbiased": False},
        paper=(
            "Tang et al. 2025, RL-finetuning LLMs from on- and off-policy data with a single "
            "algorithm (Any-Generation Reward Optimization), arXiv 2503.19612"
        ),
        defaults_from="beta 0.1 is DPO's.",
        notes=("GVPO (arXiv 2504.19599) and TB-VarGrad (arXiv 2503.18929) share its gradient.",),
    ),
    LossSpec(
        name="rebel",
        title="REBEL",
        unit="pair",
        terms=rebel,
        weights=pair_weights,
        needs=(*PAIR, REFERENCE, "rewards"),
        defaults={"eta": 1.0},
        paper=(
            "Gao et al. 2024, REBEL: Reinforcement Learning via Regressing Relative Rewards, arXiv "
            "2404.16767"
        ),
        defaults_from="eta 1 takes rewards as log-ratios in nats; set it for the reward's scale.",
    ),
)
