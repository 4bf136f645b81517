"""Point-wise reward regression with an estimate of each prompt's log-partition function.

DRO-V (`dro_value`), Reward partitioning (`reward_partition`), A*-PO (`a2po`), QRPO (`qrpo`).

Legend: S sequences, K reference samples; r reward of a response, D its log-ratio to the reference,
V value of the prompt. Every loss is a square of ``target - beta D``, like RAO.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from ._inputs import LossInputs
from ._spec import REFERENCE, LossSpec
from ._terms import (
    Terms,
    check_positive,
    group_logsumexp,
    log_ratios,
    per_token,
    reference_logps,
    reward_regression,
    sequence_weights,
)

QuantileReward = Literal["identity", "log", "normal"]
QuantileClamp = Literal["half_sample", "authors"]


def _rewards(inputs: LossInputs) -> Tensor:
    return inputs.require("rewards").double()


def dro_value(inputs: LossInputs, *, tau: float) -> Terms:
    """DRO-V: ``(r - V - tau D)^2 / 2``, mean over sequences.

    Richemond et al. 2024, arXiv 2405.19107. V is the value model's estimate for the prompt and is
    trained by the same loss: dL/dD = -tau (r - V - tau D), dL/dV = -(r - V - tau D), over S.

    Args:
        tau: KL coefficient, in reward per nat; the implicit reward is tau D.

    Returns:
        Values ``[S]``.
    """
    check_positive("tau", tau)
    values = inputs.require("values")
    if values.numel() != inputs.num_sequences:
        raise InputError("values", "shape [S], one value per prompt", list(values.shape))
    target = _rewards(inputs) - values.double()
    return reward_regression(inputs, target, tau * log_ratios(inputs), 0.5)


def reward_partition(inputs: LossInputs, *, tau: float, length_normalized: bool) -> Terms:
    """Reward partitioning: ``(D - (r - V) / tau)^2 / 2``, mean over sequences.

    Faye et al. 2025, arXiv 2506.13702. ``V = tau log sum_i pi_ref(y_i) exp(r_i / tau)`` over the
    responses of the prompt: the target policy is a softmax restricted to them. With one response
    the reward cancels, and its target probability is one.

    Args:
        tau: KL coefficient, in reward per nat; the implicit reward is tau D.
        length_normalized: True takes means over tokens of log-probs, False sums.

    Returns:
        Values ``[S]``.
    """
    check_positive("tau", tau)
    ratios, reference = log_ratios(inputs), reference_logps(inputs)
    if length_normalized:
        ratios, reference = per_token(ratios, inputs), per_token(reference, inputs)
    scaled = _rewards(inputs) / tau
    target = scaled - group_logsumexp(reference + scaled, inputs)
    return reward_regression(inputs, tau * target, tau * ratios, 0.5 / tau**2)


def a2po(inputs: LossInputs, *, beta1: float, beta2: float) -> Terms:
    """A*-PO: ``(r - V - beta2 D)^2``, mean over sequences.

    Brantley et al. 2025, arXiv 2505.20686. ``V = beta1 log mean exp(r_ref / beta1)`` over the
    reference samples of the prompt.

    Args:
        beta1: temperature of the estimate of V, in reward.
        beta2: KL coefficient, in reward per nat; the implicit reward is beta2 D.

    Returns:
        Values ``[S]``.
    """
    check_positive("beta1", beta1)
    check_positive("beta2", beta2)
    mine, samples = _reference_samples(inputs)
    scaled = (samples / beta1).expand(mine.shape).masked_fill(~mine, -torch.inf)
    value = beta1 * (scaled.logsumexp(1) - mine.sum(1).double().log())
    return reward_regression(inputs, _rewards(inputs) - value, beta2 * log_ratios(inputs), 1.0)


def qrpo(
    inputs: LossInputs,
    *,
    beta: float,
    quantile_reward: QuantileReward,
    quantile_clamp: QuantileClamp,
) -> Terms:
    """QRPO: ``(R(q) - beta log Z - beta D)^2`` with an exact Z, mean over sequences.

    Matrenok et al. 2025, arXiv 2507.08068. q is the share of the prompt's reference samples whose
    reward is at most r. It is uniform under the reference, so that Z depends on R and beta only.

    Args:
        beta: KL coefficient, in transformed reward R per nat; the implicit reward is beta D.
        quantile_reward: transform R of q. "identity": q. "log": log q. "normal": the normal
            quantile.
        quantile_clamp: clamp that keeps R finite. "half_sample": half a sample away from 0 and 1
            for "log" and "normal". "authors": a whole sample, as in their code, and for
            "log" only away from 0. Nothing is clamped for "identity".

    Returns:
        Values ``[S]``.
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
        # With a single sample the margin is half of it.
        margin = (count / 2).clamp(max=0.5 if quantile_clamp == "half_sample" else 1.0)
        one_sided = quantile_clamp == "authors" and quantile_reward == "log"
        below = below.maximum(margin).minimum(count if one_sided else count - margin)
    target = _quantile_reward(below / count, quantile_reward)
    target = target - beta * _log_partition(beta, quantile_reward)
    return reward_regression(inputs, target, beta * log_ratios(inputs), 1.0)


def _quantile_reward(quantile: Tensor, name: QuantileReward) -> Tensor:
    if name == "log":
        return quantile.log()
    return torch.special.ndtri(quantile) if name == "normal" else quantile


def _log_partition(beta: float, name: QuantileReward) -> float:
    """Return ``log`` of the integral of ``exp(R(q) / beta)`` over q from 0 to 1."""
    if name == "log":
        return -math.log1p(1 / beta)
    if name == "normal":
        return 0.5 / beta**2
    return math.log(beta) + 1 / beta + math.log(-math.expm1(-1 / beta))


def _reference_samples(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Return the mask ``[S, K]`` of a sequence's reference samples, and rewards ``[1, K]``.

    A prompt without a sample raises where the inputs are on the CPU, and gives NaN elsewhere.
    """
    rewards = inputs.require("ref_rewards").double()
    groups, owners = inputs.require("groups"), inputs.require("ref_reward_groups")
    mine = groups[:, None] == owners
    if groups.device.type == "cpu" and not bool(mine.any(1).all()):
        missing = int(groups[(~mine.any(1)).to(torch.int8).argmax()])
        raise InputError(
            "ref_reward_groups", "a sample for each prompt", f"none of group {missing}"
        )
    return mine, rewards[None]


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
            "Richemond et al. 2024, Offline Regularised Reinforcement Learning for Large Language "
            "Models Alignment, arXiv 2405.19107"
        ),
        defaults_from="tau 1 is the paper's best of 0.1, 1 and 5.",
        notes=(
            "The paper divides the policy's gradient by tau; its two networks have their own "
            "learning rates.",
            "The trainer's V is a linear layer on the policy's hidden states (value_model='head'), "
            "or a network of its own, which the paper finds better (value_model=NAME).",
            "In verl and Tinker `dro` is another loss, a sum of squares per token.",
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
        paper=(
            "Faye et al. 2025, Value-Free Policy Optimization via Reward Partitioning, arXiv "
            "2506.13702"
        ),
        defaults_from="tau 5 is that of the authors' main script.",
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
        paper=(
            "Brantley et al. 2025, Accelerating RL for LLM Reasoning with Optimal Advantage "
            "Regression, arXiv 2505.20686"
        ),
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
)
