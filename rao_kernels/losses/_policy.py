"""Building blocks of policy gradients: ratio, advantage, surrogate, penalty and mean.

Each is chosen independently. All are per token ``[N]`` until the mean; a value per sequence is
repeated at each of its tokens.

Legend: N response tokens, S sequences, G responses in a group, rho the ratio of the policy's
probability to the sampling policy's, A the advantage.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..segments import segment_sum
from ._inputs import LossInputs
from ._spec import LossSpec, Unit
from ._terms import (
    Terms,
    check_not_negative,
    check_positive,
    group_sum,
    per_token,
    sequence_weights,
    weighted_mean,
)
from .modifiers import MAX_EXPONENT, expm1

Mean = Callable[[Tensor, LossInputs], Tensor]


class ClipOptions(TypedDict):
    """Options of PPO's surrogate.

    clip_low: the ratio is clipped from below at 1 - clip_low; from 0 to 1.
    clip_high: the ratio is clipped from above at 1 + clip_high; 0 or more.
    dual_clip: upper bound of the ratio, above 1, where the advantage is negative; None for none.
    """

    clip_low: float
    clip_high: float
    dual_clip: float | None


class StdOptions(TypedDict):
    """Options of advantages that are divided by a standard deviation.

    eps: number above 0 that is added to the standard deviation, in reward.
    population_std: True divides squares by the G responses of the group, False by G - 1.
    """

    eps: float
    population_std: bool


class PolicyOptions(ClipOptions):
    """Options of every policy gradient with a penalty.

    kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none, also with a
        reference given.
    on_policy: True states that the current policy sampled the responses: ratios are 1, and
        `old_token_logps` must not be given. False requires it.
    """

    kl_beta: float


class GroupOptions(PolicyOptions, StdOptions):
    """Options of PPO's surrogate with standardised rewards as advantages."""


# Ratios, per token or of the token's sequence.


def old_token_logps(inputs: LossInputs) -> Tensor:
    """Return ``[N]`` log-probs under the sampling policy; the current ones if none are given."""
    old = inputs.old_token_logps
    return (inputs.token_logps if old is None else old).detach().double()


def token_log_ratios(inputs: LossInputs) -> Tensor:
    """Return ``[N]`` log rho of each token."""
    return inputs.token_logps.double() - old_token_logps(inputs)


def sequence_log_ratios(inputs: LossInputs) -> Tensor:
    """Return ``[N]`` sum of log rho over the token's sequence."""
    return sequence_sums(token_log_ratios(inputs), inputs)[inputs.segments]


def mean_log_ratios(inputs: LossInputs) -> Tensor:
    """Return ``[N]`` mean of log rho over the token's sequence."""
    return sequence_means(token_log_ratios(inputs), inputs)[inputs.segments]


# Advantages.


def spread(values: Tensor, inputs: LossInputs) -> Tensor:
    """Return values per sequence or per token as ``[N]`` fp64; where S = N, as per sequence."""
    values = values.double()
    return values[inputs.segments] if values.numel() == inputs.num_sequences else values


def of_tokens(name: str, inputs: LossInputs) -> Tensor:
    """Return the field `name` of PPO, given per sequence or per token, as ``[N]`` fp64.

    Where S = N and a sequence is empty, the two readings differ. Beside `returns`, which are per
    token, it is per token.

    Raises:
        InputError: nothing tells; checked on the CPU only.
    """
    values, segments = inputs.require(name), inputs.segments
    if values.numel() == segments.numel() and inputs.returns is not None:
        return values.double()
    same = values.numel() == segments.numel() == inputs.num_sequences
    if same and segments.device.type == "cpu" and len(torch.unique(segments)) < len(segments):
        expected = "values per token or per sequence, as their number tells"
        got = f"{len(values)} for as many tokens and sequences, of which one is empty"
        fix = "Drop the sequences without a token; beside `returns` values are per token."
        raise InputError(name, expected, got, fix)
    return spread(values, inputs)


def advantages_of(inputs: LossInputs, estimate: Callable[[], Tensor]) -> Tensor:
    """Return ``[N]`` the advantages given, else an estimate ``[S]``; without gradient."""
    given = inputs.advantages
    return spread(estimate() if given is None else given, inputs).detach()


def centred(rewards: Tensor, inputs: LossInputs, counted: Tensor | None = None) -> Tensor:
    """Return ``[S]`` ``r - mean(r)`` within each group; exactly 0 where all of a group are equal.

    The mean is over the sequences `counted` ``[S]``, None for all; 0 in a group without one.
    """
    rewards, groups = rewards.double(), inputs.require("groups")
    counted = torch.ones_like(groups, dtype=torch.bool) if counted is None else counted
    known = rewards.masked_fill(~counted, math.inf)
    lowest = torch.empty_like(rewards).scatter_reduce(0, groups, known, "amin", include_self=False)
    lowest = lowest[groups]
    above = rewards - torch.where(lowest.isinf(), rewards, lowest)
    count = group_sum(counted.double(), inputs).clamp(min=1)
    return above - group_sum(above.masked_fill(~counted, 0), inputs) / count


def standardized(
    rewards: Tensor,
    inputs: LossInputs,
    counted: Tensor | None = None,
    *,
    eps: float,
    population_std: bool,
) -> Tensor:
    """Return ``[S]`` ``(r - mean(r)) / (std(r) + eps)`` within each group; 0 in a group of one.

    The statistics are of the sequences `counted` ``[S]``, None for all.
    """
    deviation = centred(rewards, inputs, counted)
    counted = torch.ones_like(deviation, dtype=torch.bool) if counted is None else counted
    count = group_sum(counted.double(), inputs)
    freedom = (count if population_std else count - 1).clamp(min=1)
    variance = group_sum(deviation.square().masked_fill(~counted, 0), inputs) / freedom
    return deviation / (variance.sqrt() + check_positive("eps", eps))


def leave_one_out(rewards: Tensor, inputs: LossInputs) -> Tensor:
    """Return ``[S]`` ``r - mean of the others' r`` within each group; 0 in a group of one."""
    deviation = centred(rewards, inputs)
    count = group_sum(torch.ones_like(deviation), inputs)
    return deviation * count / (count - 1).clamp(min=1)


def standardized_advantages(inputs: LossInputs, **options: Unpack[StdOptions]) -> Tensor:
    """Return ``[N]`` advantages given, else standardised rewards."""
    return advantages_of(inputs, lambda: standardized(inputs.require("rewards"), inputs, **options))


# Surrogates ``[N]``.


def ratio(log_ratios: Tensor) -> Tensor:
    """Return ``exp(log_ratios)``, continued as its tangent from `MAX_EXPONENT` on."""
    beyond = F.relu(log_ratios - MAX_EXPONENT)
    return (log_ratios - beyond).exp() * (1 + beyond)


def clipped(
    log_ratios: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Tensor:
    """Return ``-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)``; dual clip where A < 0.

    The clip is on log rho, so that a ratio that overflows does not reach a clipped branch.
    """
    low, high = log_bounds(clip_low, clip_high)
    if dual_clip is not None and not dual_clip > 1:
        raise InputError("dual_clip", "None, or a number above 1", dual_clip)
    clamped = one_sided(log_ratios, advantages, low, high)
    if dual_clip is not None:
        dual = clamped.clamp(max=math.log(dual_clip))
        clamped = torch.where(advantages < 0, dual, clamped)
    return -advantages * ratio(clamped)


def one_sided(log_ratios: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Clip from above at `high` where A >= 0 and from below at `low` elsewhere, as PPO does."""
    return torch.where(advantages < 0, log_ratios.clamp(min=low), log_ratios.clamp(max=high))


def log_bounds(clip_low: float, clip_high: float) -> tuple[float, float]:
    """Return ``log(1 - clip_low)`` and ``log(1 + clip_high)``."""
    if not 0 <= clip_low <= 1:
        raise InputError("clip_low", "a number from 0 to 1", clip_low)
    check_not_negative("clip_high", clip_high)
    return math.log1p(-clip_low) if clip_low < 1 else -math.inf, math.log1p(clip_high)


# Penalty ``[N]``.


def k3(inputs: LossInputs) -> Tensor:
    """Return ``exp(d) - d - 1``, d = log(pi_ref / pi), an estimate of the KL of pi to pi_ref.

    Schulman 2020, Approximating KL Divergence. At least 0.
    """
    reference = inputs.require("ref_token_logps").detach().double()
    difference = reference - inputs.token_logps.double()
    return expm1(difference) - difference


# Means: from ``[N]`` to values per unit.


def sequence_sums(values: Tensor, inputs: LossInputs) -> Tensor:
    """Return ``[S]`` sum over the tokens of each sequence."""
    return segment_sum(values, inputs.segments, inputs.num_sequences)


def sequence_means(values: Tensor, inputs: LossInputs) -> Tensor:
    """Return ``[S]`` mean over the tokens of each sequence; 0 for an empty one."""
    return per_token(sequence_sums(values, inputs), inputs)


def batch_token_means(values: Tensor, inputs: LossInputs) -> Tensor:
    """Return ``[S]`` values whose mean over sequences is the mean over all tokens of this batch."""
    return sequence_sums(values, inputs) * (inputs.num_sequences / max(values.numel(), 1))


def tokens(values: Tensor, inputs: LossInputs) -> Tensor:
    """Return `values` ``[N]`` unchanged, for a mean over the tokens of all batches of a step."""
    return values


def policy_terms(
    inputs: LossInputs,
    surrogate: Tensor,
    mean: Mean,
    *,
    kl_beta: float,
    metrics: dict[str, Tensor],
) -> Terms:
    """Reduce `surrogate` ``[N]``, plus the k3 penalty where kl_beta is not 0, by `mean`."""
    if kl_beta == 0:
        return Terms(mean(surrogate, inputs), metrics)
    penalty = k3(inputs)
    total = surrogate + check_positive("kl_beta", kl_beta) * penalty
    return Terms(mean(total, inputs), {**metrics, "kl": token_mean(penalty)})


def ratio_metrics(
    log_ratios: Tensor, advantages: Tensor, low: float = -math.inf, high: float = math.inf
) -> dict[str, Tensor]:
    """Return the mean ratio, and the shares of tokens clipped on either side."""
    return {
        "ratio/mean": token_mean(ratio(log_ratios)),
        "clip_ratio/low_mean": token_mean((log_ratios < low) & (advantages < 0)),
        "clip_ratio/high_mean": token_mean((log_ratios > high) & (advantages > 0)),
    }


def token_weights(inputs: LossInputs) -> Tensor:
    """Return ``[N]`` ones."""
    return torch.ones_like(inputs.token_logps, dtype=torch.float64, requires_grad=False)


def token_mean(values: Tensor) -> Tensor:
    """Return the mean over tokens; 0 without one."""
    values = values.double()
    return weighted_mean(values, torch.ones_like(values))


# Losses of the table.


def with_on_policy(terms: Callable[..., Terms]) -> Callable[..., Terms]:
    """Add the hyperparameter `on_policy` to `terms`: all ratios are 1."""

    # The annotations stay this function's own: `hyperparameter_types` reads `on_policy` there.
    @functools.wraps(terms, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
    def switched(inputs: LossInputs, *, on_policy: bool, **hyper: Any) -> Terms:
        if on_policy and inputs.old_token_logps is not None:
            raise InputError("old_token_logps", "None with on_policy=True", "a tensor")
        return terms(inputs, **hyper)

    return switched


# Without old log-probs every ratio would be 1, whichever policy sampled the responses.
OLD_NEEDED_UNLESS = {"old_token_logps": (("on_policy", True),)}

STD = {"eps": 1e-4, "population_std": False}
RATIO = {"kl_beta": 0.0, "on_policy": False}
SOFT = {**RATIO, **STD}
PPO = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None, **RATIO}
GROUPED = {**PPO, **STD}
STD_NOTE = (
    "Advantages: eps 1e-4 with the sample's standard deviation is TRL's; verl has 1e-6, HALOs 1e-2 "
    "with the population's (`population_std=True`). Pass other advantages, such as those of TRL's "
    "scale_rewards='batch', as `advantages`; they take precedence over rewards."
)
DUAL_NOTE = (
    "`dual_clip` is verl's clip_ratio_c (3.0), and TRL's and Liger's delta where that is above "
    "1 + clip_high."
)
KL_NOTE = (
    "The k3 penalty is off unless kl_beta is given, also with a reference; the GRPO paper has "
    "0.04. verl clamps its exponent at 20 and its value at 10, without gradient beyond; here all "
    "exponentials, ratios included, continue as their tangent from e^20 on, so that no gradient "
    "exceeds 5e8 times the advantage and a global norm of gradients stays finite."
)


def row(
    name: str,
    title: str,
    unit: Unit,
    terms: Callable[..., Terms],
    defaults: Mapping[str, Any],
    paper: str,
    defaults_from: str,
    *notes: str,
) -> LossSpec:
    """Build the `LossSpec` of a loss with advantages, given or from rewards, and the k3 penalty."""
    return LossSpec(
        name=name,
        title=title,
        unit=unit,
        terms=with_on_policy(terms),
        weights=sequence_weights if unit == "sequence" else token_weights,
        needs=("advantages|rewards", "old_token_logps", "ref_token_logps"),
        optional=("groups",),
        defaults=defaults,
        paper=paper,
        defaults_from=defaults_from,
        needed_unless={"ref_token_logps": (("kl_beta", 0.0),), **OLD_NEEDED_UNLESS},
        notes=notes,
    )
