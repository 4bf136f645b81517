"""Reward Alignment Optimization: regress the log-ratio onto the explicit reward.

With the response's log-ratio D to the reference and the prompt's log-ratio DX after the prefix
all prompts share, prefix consistency of the optimal policy gives its log-partition function as

    log Z(x) = log Z0 + DX,      log Z0 = log Z(t0), one number for all prompts,

so that every residual ``r - beta (D + log Z(x))`` vanishes at the optimum.
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
    log_ratios,
    prompt_log_ratios,
    prompt_weights,
    reward_preference_metrics,
    weighted_mean,
)

PromptTerm = Literal["detached", "none", "grad", "eq7_literal"]


def rao(
    inputs: LossInputs, *, beta: float, log_z0: float | Literal["auto"], prompt_term: PromptTerm
) -> Terms:
    """``(r - beta (D + log_z0 + DX))^2`` per response; mean over prompts of means over responses.

    Args:
        beta: strength of the pull to the reference.
        log_z0: log Z(t0) in nats; "auto" is the mean over prompts of the mean reward, over beta.
        prompt_term: "detached": DX without gradient (Algorithm 1). "none": DX = 0. "grad": DX
            with gradient (Eq. 8). "eq7_literal": the offset is ``log_z0 * exp(DX)``, without
            gradient, reading the number as the linear Z0 of Eq. 7.

    Values ``[S]``; dL/dD = -2 beta residual / (prompts * responses of the prompt).
    """
    check_positive("beta", beta)
    rewards = inputs.require("rewards").double()
    level = _log_z0(inputs, beta, log_z0)
    offset = beta * _log_partition(inputs, level, prompt_term)
    implicit = beta * log_ratios(inputs)
    residual = rewards - offset - implicit
    return Terms(
        residual.square(),
        {"rao/log_z0": level, **_metrics(inputs, beta, offset, implicit, residual)},
    )


def _log_z0(inputs: LossInputs, beta: float, log_z0: float | str) -> Tensor:
    rewards = inputs.require("rewards").double()
    if log_z0 == "auto":
        return weighted_mean(rewards, prompt_weights(inputs)) / beta
    if isinstance(log_z0, str) or not math.isfinite(log_z0):
        raise InputError("log_z0", "a finite number of nats, or 'auto'", repr(log_z0))
    return rewards.new_full((), log_z0)


def _log_partition(inputs: LossInputs, log_z0: Tensor, prompt_term: PromptTerm) -> Tensor:
    """``[S]`` log Z of each sequence's prompt."""
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
    """In units of the reward, but for `log_z*` and `logps/*`, which are nats."""
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
        unit="prompt",
        terms=rao,
        weights=prompt_weights,
        needs=("rewards", REFERENCE, "prompt_logps", "ref_prompt_logps"),
        defaults={"beta": 0.1, "log_z0": 50.0, "prompt_term": "detached"},
        paper="Reward Alignment Optimization, Algorithm 1",
        waived={
            "prompt_logps": (("prompt_term", "none"),),
            "ref_prompt_logps": (("prompt_term", "none"),),
        },
    ),
)
