"""Reward Alignment Optimization (RAO): regression of the log-ratio onto the explicit reward.

RAO (`rao`).

With the response's log-ratio D to the reference and the prompt's log-ratio DX after the prefix t0
that all prompts share, prefix consistency (Eq. 6) gives the log-partition function of the optimal
policy as

    log Z(x) = log Z0 + DX,      log Z0 = log Z(t0), one number for all prompts,

so that every residual ``r - beta (D + log Z(x))`` vanishes at the optimum. docs/rao.md explains the
meaning of the paper's Z0 and how to choose it.

Legend: S sequences, r reward of a response.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError, OneSidedTargetsWarning
from ._inputs import LossInputs
from ._spec import REFERENCE, LossSpec
from ._terms import (
    Terms,
    check_positive,
    log_ratios,
    prompt_log_ratios,
    prompt_weights,
    reward_preference_metrics,
    sizes_of,
    weighted_mean,
)

PromptTerm = Literal["detached", "none", "grad", "eq7_literal"]
LogZ0Estimate = Literal["auto", "logmeanexp"]


def rao(
    inputs: LossInputs,
    *,
    beta: float,
    log_z0: float | LogZ0Estimate,
    prompt_term: PromptTerm,
) -> Terms:
    """RAO: ``(r - beta (D + log_z0 + DX))^2``, mean over prompts of means over responses.

    Reward Alignment Optimization, Algorithm 1.
    dL/dD = -2 beta residual / (prompts * responses of the prompt).

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        log_z0: log Z(t0) in nats, a number (the paper's best is 50), or an estimate of it by
            `fit_log_z0` from the rewards given: "auto", their mean over beta, a lower bound that
            centres the targets; "logmeanexp", log mean exp(r / beta), of `ref_rewards` where those
            are given. The trainer makes the estimate once, from the whole training set.
        prompt_term: treatment of DX. "detached": without gradient (Algorithm 1). "none": DX = 0.
            "grad": with gradient (Eq. 8). "eq7_literal": the offset is ``log_z0 * exp(DX)``,
            without gradient, which reads the number as the linear Z0 of Eq. 7.

    Returns:
        Values ``[S]``, with metrics in units of the reward, but for `log_z*` and `logps/*` in nats.
    """
    check_positive("beta", beta)
    rewards = inputs.require("rewards").double()
    level = _log_z0(inputs, beta, log_z0)
    offset = beta * _log_partition(inputs, level, prompt_term)
    implicit = beta * log_ratios(inputs)
    residual = rewards - offset - implicit
    _warn_of_one_sign(rewards - offset)
    return Terms(
        residual.square(),
        {"rao/log_z0": level, **_metrics(inputs, beta, offset, implicit, residual)},
    )


def fit_log_z0(
    rewards: Tensor,
    beta: float,
    groups: Tensor | None = None,
    method: LogZ0Estimate = "auto",
) -> Tensor:
    """Estimate log Z(t0) in nats from rewards, with equal weight for each prompt.

    ``Z(t0) = E[exp(r / beta)]`` over prompts and over responses that the reference samples.

    Args:
        rewards: ``[S]``, S >= 1.
        beta: KL coefficient of the loss, above 0.
        groups: ``[S]`` id of the prompt that each reward belongs to, any ids; None: each its own.
        method: "auto": mean of ``r / beta``, with which the targets ``r / beta - log_z0`` average
            to zero. "logmeanexp": ``log mean exp(r / beta)``; for small beta the highest rewards
            dominate it. On samples from the reference "logmeanexp" converges to log Z(t0), and
            "auto" is a lower bound by Jensen's inequality.

    Returns:
        fp64 scalar.

    Raises:
        InputError: an argument has another shape or range than stated.
    """
    check_positive("beta", beta)
    if method not in get_args(LogZ0Estimate):
        raise InputError("method", f"one of {get_args(LogZ0Estimate)}", repr(method))
    if rewards.dim() != 1 or rewards.numel() == 0:
        raise InputError("rewards", "shape [S] with S >= 1", list(rewards.shape))
    if groups is not None and groups.shape != rewards.shape:
        expected = f"shape {list(rewards.shape)}, like `rewards`"
        raise InputError("groups", expected, list(groups.shape))
    scaled = rewards.double() / beta
    weights = torch.ones_like(scaled) if groups is None else sizes_of(groups).double().reciprocal()
    weights = weights / weights.sum()
    if method == "auto":
        return (weights * scaled).sum()
    return (scaled + weights.log()).logsumexp(0)


def _log_z0(inputs: LossInputs, beta: float, log_z0: float | str) -> Tensor:
    """Return log Z(t0), the number given or its estimate, as an fp64 scalar."""
    rewards, groups = inputs.require("rewards"), inputs.groups
    if log_z0 == "auto":
        return fit_log_z0(rewards, beta, groups, "auto")
    if log_z0 == "logmeanexp":
        if inputs.ref_rewards is not None:
            rewards, groups = inputs.ref_rewards, inputs.require("ref_reward_groups")
        return fit_log_z0(rewards, beta, groups, "logmeanexp")
    if isinstance(log_z0, str) or not math.isfinite(log_z0):
        expected = "a finite number of nats, 'auto' or 'logmeanexp'"
        raise InputError("log_z0", expected, repr(log_z0))
    return rewards.new_full((), log_z0, dtype=torch.float64)


def _warn_of_one_sign(targets: Tensor) -> None:
    """Warn if the targets raise the log-probability of every response, or lower it.

    Only for two responses or more, and only on the CPU: reading other devices would synchronise.
    """
    if targets.device.type != "cpu" or targets.numel() < 2:
        return
    targets = targets.detach()
    if bool((targets > 0).all()) or bool((targets < 0).all()):
        warnings.warn(
            "the targets of this call raise, or lower, the log-prob of every response: log_z0 is "
            "far from the mean of rewards / beta; log_z0='auto' centres the targets",
            OneSidedTargetsWarning,
            stacklevel=4,
        )


def _log_partition(inputs: LossInputs, log_z0: Tensor, prompt_term: PromptTerm) -> Tensor:
    """Return ``[S]`` log Z of each sequence's prompt."""
    if prompt_term not in get_args(PromptTerm):
        raise InputError("prompt_term", f"one of {get_args(PromptTerm)}", repr(prompt_term))
    if prompt_term == "none":
        return log_z0.expand(inputs.num_sequences)
    ratios = prompt_log_ratios(inputs)
    if prompt_term == "grad":
        return log_z0 + ratios
    if prompt_term == "detached":
        return log_z0 + ratios.detach()
    return log_z0 * ratios.detach().exp()


@torch.no_grad()
def _metrics(
    inputs: LossInputs, beta: float, offset: Tensor, implicit: Tensor, residual: Tensor
) -> dict[str, Tensor]:
    """Return metrics in units of the reward, but for `log_z*` and `logps/*`, which are nats."""
    weights = prompt_weights(inputs)

    def mean(values: Tensor) -> Tensor:
        return weighted_mean(values, weights)

    log_z = offset / beta
    metrics = {
        "rao/mse": mean(residual.square()),
        "rao/residual_mean": mean(residual),
        "rao/residual_abs_max": residual.abs().amax(),
        "rao/target_mean": mean(residual + implicit),
        "rao/implicit_mean": mean(implicit),
        "rao/log_z_mean": mean(log_z),
        "rao/log_z_std": mean((log_z - mean(log_z)).square()).sqrt(),
    }
    if inputs.prompt_logps is not None:
        metrics["logps/prompt"] = mean(inputs.prompt_logps.double())
    return metrics | reward_preference_metrics(inputs, implicit)


ROWS: tuple[LossSpec, ...] = (
    LossSpec(
        name="rao",
        title="RAO",
        unit="prompt",
        terms=rao,
        weights=prompt_weights,
        needs=("rewards", REFERENCE, "prompt_logps", "ref_prompt_logps"),
        optional=("groups", "ref_rewards", "ref_reward_groups"),
        defaults={"beta": 0.1, "log_z0": 50.0, "prompt_term": "detached"},
        paper=(
            "RAO paper, Reward Alignment Optimization: A Direct Point-wise Alignment Approach, "
            "Algorithm 1"
        ),
        defaults_from="the paper's best, beta 0.1 and Z0 50.",
        notes=(
            "Z0 is read as log Z(t0) in nats: the paper searches it over negative numbers too, "
            "which have no log. Eq. 7 prints no log; Eq. 5, 6, 8 and Algorithm 1 have one "
            "(docs/rao.md). The defaults here are the paper's; the trainer's is log_z0='auto'.",
        ),
        needed_unless={
            "prompt_logps": (("prompt_term", "none"),),
            "ref_prompt_logps": (("prompt_term", "none"),),
        },
    ),
)
