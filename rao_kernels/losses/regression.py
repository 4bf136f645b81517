"""Point-wise reward regression: RAO's siblings, which differ in how they know log Z.

Legend: S sequences, K reference samples; r reward of a response, D its log-ratio to the reference,
k responses per prompt. Every loss is the square of ``target - beta D``.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
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
    per_token,
    prompt_weights,
    reference_logps,
    reward_preference_metrics,
    sequence_weights,
)

QuantileReward = Literal["identity", "log", "normal"]
QuantileClamp = Literal["half_sample", "authors"]
Baseline = Literal["mean", "log_mean_exp"]


def _regression(
    inputs: LossInputs, target: Tensor, implicit: Tensor, scale: float | Tensor
) -> Terms:
    """``scale (target - implicit)^2`` per sequence."""
    metrics = reward_preference_metrics(inputs, implicit)
    return Terms(scale * (target - implicit).square(), metrics)


def _rewards(inputs: LossInputs) -> Tensor:
    return inputs.require("rewards").double()


# The level of the reward known from outside.


def dro_value(inputs: LossInputs, *, tau: float) -> Terms:
    """DRO-V: ``(r - V - tau D)^2 / 2`` (arXiv 2405.19107).

    V is the value model's estimate for the prompt and is trained by the same loss:
    dL/dD = -tau (r - V - tau D), dL/dV = -(r - V - tau D), over S.
    """
    check_positive("tau", tau)
    values = inputs.require("values")
    if values.numel() != inputs.num_sequences:
        raise InputError("values", "shape [S], one value per prompt", list(values.shape))
    target = _rewards(inputs) - values.double()
    return _regression(inputs, target, tau * log_ratios(inputs), 0.5)


def reward_partition(inputs: LossInputs, *, tau: float, length_normalized: bool) -> Terms:
    """Reward partitioning: ``(D - (r - V) / tau)^2 / 2`` (arXiv 2506.13702).

    ``V = tau log sum_i pi_ref(y_i) exp(r_i / tau)`` over the responses of the prompt, so that
    targets are a softmax restricted to them. With one response the reward cancels and the target
    is probability one.
    """
    check_positive("tau", tau)
    ratios, reference = log_ratios(inputs), reference_logps(inputs)
    if length_normalized:
        ratios, reference = per_token(ratios, inputs), per_token(reference, inputs)
    scaled = _rewards(inputs) / tau
    target = scaled - group_logsumexp(reference + scaled, inputs)
    return _regression(inputs, tau * target, tau * ratios, 0.5 / tau**2)


def a2po(inputs: LossInputs, *, beta1: float, beta2: float) -> Terms:
    """A*-PO: ``(r - V - beta2 D)^2`` (arXiv 2505.20686).

    ``V = beta1 log mean exp(r_ref / beta1)`` over the reference samples of the prompt.

    Args:
        beta1: temperature at which the value V is estimated.
        beta2: strength of the pull to the reference, in reward per nat.
    """
    check_positive("beta1", beta1)
    check_positive("beta2", beta2)
    mine, samples = _reference_samples(inputs)
    scaled = (samples / beta1).expand(mine.shape).masked_fill(~mine, -torch.inf)
    value = beta1 * (scaled.logsumexp(1) - mine.sum(1).double().log())
    return _regression(inputs, _rewards(inputs) - value, beta2 * log_ratios(inputs), 1.0)


def qrpo(
    inputs: LossInputs,
    *,
    beta: float,
    quantile_reward: QuantileReward,
    quantile_clamp: QuantileClamp,
) -> Terms:
    """QRPO: ``(R(q) - beta log Z - beta D)^2`` with an exact Z (arXiv 2507.08068).

    q is the share of the prompt's reference samples whose reward is at most r: uniform under the
    reference, so that Z depends on R and beta only.

    Args:
        quantile_reward: R. "identity"; "log"; "normal", the normal quantile.
        quantile_clamp: how q is kept where R is finite. "half_sample": half a sample away from 0
            and 1 for "log" and "normal". "authors": a whole sample, as their code does, for "log"
            away from 0 alone. Nothing is clamped for "identity".
    """
    check_positive("beta", beta)
    if quantile_reward not in get_args(QuantileReward):
        choices = f"one of {get_args(QuantileReward)}"
        raise InputError("quantile_reward", choices, repr(quantile_reward))
    if quantile_clamp not in get_args(QuantileClamp):
        choices = f"one of {get_args(QuantileClamp)}"
        raise InputError("quantile_clamp", choices, repr(quantile_clamp))
    mine, samples = _reference_samples(inputs)
    count = mine.sum(1).double()
    below = (mine & (samples <= _rewards(inputs)[:, None])).sum(1).double()
    if quantile_reward != "identity":
        # Of a single sample half of it is all there is.
        margin = (count / 2).clamp(max=0.5 if quantile_clamp == "half_sample" else 1.0)
        one_sided = quantile_clamp == "authors" and quantile_reward == "log"
        below = below.maximum(margin).minimum(count if one_sided else count - margin)
    target = _quantile_reward(below / count, quantile_reward)
    target = target - beta * _log_partition(beta, quantile_reward)
    return _regression(inputs, target, beta * log_ratios(inputs), 1.0)


def _quantile_reward(quantile: Tensor, name: QuantileReward) -> Tensor:
    if name == "log":
        return quantile.log()
    return torch.special.ndtri(quantile) if name == "normal" else quantile


def _log_partition(beta: float, name: QuantileReward) -> float:
    """``log`` of the integral of ``exp(R(q) / beta)`` over q from 0 to 1."""
    if name == "log":
        return -math.log1p(1 / beta)
    if name == "normal":
        return 0.5 / beta**2
    return math.log(beta) + 1 / beta + math.log(-math.expm1(-1 / beta))


def _reference_samples(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """``[S, K]`` which reference samples answer the prompt of a sequence, and rewards ``[1, K]``.

    A prompt without any gives NaN, and an error that names it where the inputs are on the CPU.
    """
    rewards = inputs.require("ref_rewards").double()
    groups, owners = inputs.require("groups"), inputs.require("ref_reward_groups")
    mine = groups[:, None] == owners
    if groups.device.type == "cpu" and not bool(mine.any(1).all()):
        lonely = int(groups[(~mine.any(1)).to(torch.int8).argmax()])
        raise InputError("ref_reward_groups", "a sample for each prompt", f"none of group {lonely}")
    return mine, rewards[None]


# The level taken from the group.


def kimi(inputs: LossInputs, *, tau: float, baseline: Baseline) -> Terms:
    """Kimi k1.5: ``(r - V - tau D)^2 / (2 tau)``, mean over prompts of means (arXiv 2501.12599).

    V is the group's mean reward or, as derived, ``tau log mean exp(r / tau)``; the reference is
    the policy of the previous iteration. dL/dD = -(r - V - tau D) / k.

    Args:
        baseline: V. "mean": the group's mean reward. "log_mean_exp": as derived.
    """
    return _group_regression(inputs, 1.0, check_positive("tau", tau), baseline)


def dgro(
    inputs: LossInputs, *, beta1: float, beta2: float, half: bool, baseline: Baseline
) -> Terms:
    """DGRO: ``-beta1 (r - V) D + beta2 D^2 / 2`` (arXiv 2505.12951), completed to a square.

    The value is ``(beta1 (r - V) - b D)^2 / (2 b)`` with b = beta2, or 2 beta2 without `half`; the
    sampling policy is the reference. dL/dD = -(beta1 (r - V) - b D) / k.

    Args:
        beta1: scale of the policy gradient.
        beta2: weight of the squared distance to the sampling policy.
        half: whether that square is halved, as where a KL regulariser is expanded; False is the
            ``beta2 D^2`` that summaries of the paper print.
        baseline: V. "mean": the group's mean reward. "log_mean_exp": the soft value
            ``t log mean exp(r / t)`` at t = b / beta1, the ratio that fixes the optimum.
    """
    check_positive("beta1", beta1)
    tau = check_positive("beta2", beta2) * (1 if half else 2)
    return _group_regression(inputs, beta1, tau, baseline)


def _group_regression(
    inputs: LossInputs, reward_scale: float, tau: float, baseline: Baseline
) -> Terms:
    """``(scale (r - V) - tau D)^2 / (2 tau)`` for each response of a group."""
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
    return _regression(inputs, target, tau * log_ratios(inputs), 0.5 / tau)


def agro(inputs: LossInputs, *, beta: float, unbiased: bool) -> Terms:
    """AGRO: half the variance of ``r - beta D`` within each prompt (arXiv 2503.19612).

    ``sum_i (rho_i - mean rho)^2 / (2 k)``, with `unbiased` over ``2 (k - 1)``; zero for a single
    response. dL/dD_i = -beta (rho_i - mean rho) / k.

    Args:
        unbiased: whether the variance is divided by k - 1 instead of k.
    """
    check_positive("beta", beta)
    implicit = beta * log_ratios(inputs)
    level = group_mean(_rewards(inputs) - implicit, inputs)
    sizes = group_sizes(inputs).double()
    scale = 0.5 * sizes / (sizes - 1).clamp(min=1) if unbiased else 0.5
    return _regression(inputs, _rewards(inputs) - level, implicit, scale)


def rebel(inputs: LossInputs, *, eta: float) -> Terms:
    """REBEL: ``((D_w - D_l) - eta (r_w - r_l))^2`` (arXiv 2404.16767).

    D is against the policy that sampled; the implicit rewards are D / eta.

    Args:
        eta: log-ratio that one unit of reward is worth, 1 / beta of other losses.
    """
    check_positive("eta", eta)
    pairs = pair_up(inputs)
    ratios = log_ratios(inputs)
    chosen, rejected = pairs.split(ratios - eta * _rewards(inputs))
    return Terms((chosen - rejected).square(), pair_metrics(inputs, pairs, ratios / eta))


ROWS: tuple[LossSpec, ...] = (
    LossSpec(
        name="dro_value",
        title="DRO-V",
        unit="sequence",
        terms=dro_value,
        weights=sequence_weights,
        needs=("rewards", REFERENCE, "values"),
        defaults={"tau": 1.0},
        paper=(
            "Richemond et al. 2024, Offline Regularised Reinforcement Learning (DRO), arXiv "
            "2405.19107"
        ),
        defaults_from="tau 1 is the paper's best of 0.1, 1 and 5.",
        notes=(
            "The paper divides the policy's gradient by tau; its two networks have their own "
            "learning rates.",
            "verl and Tinker call `dro` a loss per token, whose sum of squares is another.",
        ),
    ),
    LossSpec(
        name="reward_partition",
        title="Reward partitioning",
        unit="sequence",
        terms=reward_partition,
        weights=sequence_weights,
        needs=("rewards", REFERENCE, "groups"),
        defaults={"tau": 5.0, "length_normalized": False},
        paper="Faye et al. 2025, Reward Partitioning Optimization, arXiv 2506.13702",
        defaults_from=(
            "tau 5 is that of the authors' main script; sums over tokens are the paper's."
        ),
        notes=(
            "The authors' code averages log-probs over tokens (length_normalized=True) and "
            "standardises rewards over the data set beforehand.",
        ),
    ),
    LossSpec(
        name="a2po",
        title="A*-PO",
        unit="sequence",
        terms=a2po,
        weights=sequence_weights,
        needs=("rewards", REFERENCE, "groups", "ref_rewards", "ref_reward_groups"),
        defaults={"beta1": 0.5, "beta2": 1e-3},
        paper="Brantley et al. 2025, Optimal Advantage Regression (A*-PO), arXiv 2505.20686",
        defaults_from="the paper's and TRL's.",
    ),
    LossSpec(
        name="qrpo",
        title="QRPO",
        unit="sequence",
        terms=qrpo,
        weights=sequence_weights,
        needs=("rewards", REFERENCE, "groups", "ref_rewards", "ref_reward_groups"),
        defaults={"beta": 0.1, "quantile_reward": "identity", "quantile_clamp": "half_sample"},
        paper="Matrenok et al. 2025, Quantile Reward Policy Optimization, arXiv 2507.08068",
        defaults_from="beta 0.1 is DPO's; set it for the task.",
        notes=("The authors' code drops log(1 - exp(-1 / beta)) from log Z.",),
    ),
    LossSpec(
        name="kimi",
        title="Kimi k1.5",
        unit="prompt",
        terms=kimi,
        weights=prompt_weights,
        needs=("rewards", REFERENCE, "groups"),
        defaults={"tau": 0.1, "baseline": "mean"},
        paper="Kimi Team 2025, Kimi k1.5, arXiv 2501.12599",
        defaults_from="the report publishes no tau; 0.1 is DPO's beta.",
        notes=(
            "The report publishes no tau. Trinity-RFT's k2 regulariser is per token and has no "
            "factor 1/2.",
        ),
    ),
    LossSpec(
        name="dgro",
        title="DGRO",
        unit="prompt",
        terms=dgro,
        weights=prompt_weights,
        needs=("rewards", REFERENCE, "groups"),
        defaults={"beta1": 1.0, "beta2": 0.1, "half": True, "baseline": "mean"},
        paper="Su et al. 2025, Decoupled Group Reward Optimization, arXiv 2505.12951",
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
        paper="Tang et al. 2025, Any-Generation Reward Optimization, arXiv 2503.19612",
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
        paper="Gao et al. 2024, REBEL: Regressing Relative Rewards, arXiv 2404.16767",
        defaults_from="eta 1 takes rewards as log-ratios in nats; set it for the reward's scale.",
    ),
)
