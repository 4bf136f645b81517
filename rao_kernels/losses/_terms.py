"""Building blocks of the losses: log-ratios, surrogates, groups, weights, pairs and metrics.

Legend: N response tokens, S sequences, P pairs. Arithmetic per sequence is fp64: its cost on S
numbers is negligible, and log-ratios of long responses need it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..segments import segment_sum
from ._inputs import LossInputs


@dataclass(frozen=True)
class Terms:
    """Unreduced values of a loss, one per element of its weights, and its metrics."""

    values: Tensor
    metrics: dict[str, Tensor]


# Log-probabilities and log-ratios per sequence.


def log_ratios(inputs: LossInputs) -> Tensor:
    """Return ``[S]`` D = log pi(y|x) - log pi_ref(y|x), from per-token differences where given."""
    if inputs.ref_token_logps is None:
        return inputs.logps - inputs.require("ref_logps").detach().double()
    differences = inputs.token_logps.double() - inputs.ref_token_logps.detach().double()
    return segment_sum(differences, inputs.segments, inputs.num_sequences)


def reference_logps(inputs: LossInputs) -> Tensor:
    """Return ``[S]`` log-probability of each response under the reference."""
    if inputs.ref_token_logps is None:
        return inputs.require("ref_logps").detach().double()
    return segment_sum(inputs.ref_token_logps.detach(), inputs.segments, inputs.num_sequences)


def prompt_log_ratios(inputs: LossInputs) -> Tensor:
    """Return ``[S]`` DX = log-ratio of the prompt after its shared prefix."""
    reference = inputs.require("ref_prompt_logps")
    return inputs.require("prompt_logps").double() - reference.detach().double()


def per_token(sums: Tensor, inputs: LossInputs) -> Tensor:
    """Divide ``[S]`` sums over tokens by the length; 0 for an empty response."""
    return sums / inputs.lengths.clamp(min=1)


# Surrogates: functions of a margin.


def logistic(margin: Tensor) -> Tensor:
    """Return ``log(1 + exp(-margin))``, accurate for large margins of either sign."""
    return -F.logsigmoid(margin)


def bernoulli_kl(a: Tensor, b: Tensor) -> Tensor:
    """Return the KL of Bernoulli(sigmoid(a)) to Bernoulli(sigmoid(b))."""
    heads = torch.sigmoid(a) * (F.logsigmoid(a) - F.logsigmoid(b))
    return heads + torch.sigmoid(-a) * (F.logsigmoid(-a) - F.logsigmoid(-b))


def reward_regression(
    inputs: LossInputs, target: Tensor, implicit_rewards: Tensor, scale: float | Tensor
) -> Terms:
    """Return ``scale (target - implicit_rewards)^2`` per sequence, with preference metrics."""
    metrics = reward_preference_metrics(inputs, implicit_rewards)
    return Terms(scale * (target - implicit_rewards).square(), metrics)


# Groups: sums and means over the responses to one prompt.


def group_sum(values: Tensor, inputs: LossInputs) -> Tensor:
    """Return ``[S]`` sum of `values` ``[S]`` over the group of each sequence; deterministic."""
    groups = inputs.groups
    if groups is None:
        return values
    order = groups.argsort(stable=True)
    return segment_sum(values[order], groups[order], inputs.num_sequences)[groups]


def group_mean(values: Tensor, inputs: LossInputs) -> Tensor:
    """Return ``[S]`` mean of `values` ``[S]`` over the group of each sequence."""
    return group_sum(values, inputs) / group_sizes(inputs)


def group_logsumexp(values: Tensor, inputs: LossInputs) -> Tensor:
    """Return ``[S]`` log of the sum of ``exp(values)`` over the group of each sequence."""
    groups = inputs.groups
    if groups is None:
        return values
    level = values.detach()
    level = torch.empty_like(level).scatter_reduce(0, groups, level, "amax", include_self=False)
    level = level[groups]
    return level + group_sum((values - level).exp(), inputs).log()


# Weights of the values; their sum is the number of units.


def prompt_weights(inputs: LossInputs) -> Tensor:
    """Return ``[S]`` 1 / (responses of the prompt): a mean over responses within each prompt."""
    return group_sizes(inputs).double().reciprocal()


def sequence_weights(inputs: LossInputs) -> Tensor:
    """Return ``[S]`` ones."""
    return _ones(inputs.num_sequences, inputs)


def pair_weights(inputs: LossInputs) -> Tensor:
    """Return ``[P]`` ones."""
    return _ones(inputs.num_sequences // 2, inputs)


def preferred_token_weights(inputs: LossInputs) -> Tensor:
    """Return ``[N]`` 1 for tokens of preferred sequences, else 0; all 1 without `preferred`."""
    if inputs.preferred is None:
        return _ones(inputs.token_logps.numel(), inputs)
    return inputs.preferred.bool()[inputs.segments].double()


def _ones(count: int, inputs: LossInputs) -> Tensor:
    return torch.ones(count, dtype=torch.float64, device=inputs.token_logps.device)


def group_sizes(inputs: LossInputs) -> Tensor:
    """Return ``[S]`` number of sequences in the group of each."""
    if inputs.groups is None:
        return torch.ones(inputs.num_sequences, dtype=torch.int64, device=inputs.token_logps.device)
    return sizes_of(inputs.groups)


def sizes_of(groups: Tensor) -> Tensor:
    """Return ``[S]`` number of times that each id in `groups` ``[S]`` occurs."""
    groups = groups.contiguous()
    ordered = groups.sort().values
    after = torch.searchsorted(ordered, groups, right=True)
    return after - torch.searchsorted(ordered, groups)


# Pairs.


@dataclass(frozen=True)
class Pairs:
    """Two sequences per prompt.

    chosen, rejected: ``[P]`` indices of the sequences. nan_if_invalid: ``[P]`` 0, or NaN where the
    two sequences do not make a pair.
    """

    chosen: Tensor
    rejected: Tensor
    nan_if_invalid: Tensor

    def split(self, per_sequence: Tensor) -> tuple[Tensor, Tensor]:
        """Return chosen and rejected ``[P]`` of ``[S]``; NaN where a pair is invalid."""
        return per_sequence[self.chosen] + self.nan_if_invalid, per_sequence[
            self.rejected
        ] + self.nan_if_invalid


def pair_up(inputs: LossInputs) -> Pairs:
    """Pair the sequences that share a group, the preferred one first.

    On the CPU a group of another size, or with none or two preferred, raises an `InputError` that
    names it. On other devices, where reading the inputs would synchronise, its pair gives NaN.
    """
    groups, preferred = inputs.require("groups"), inputs.require("preferred").bool()
    if groups.numel() % 2:
        raise _pair_error(groups, preferred)
    order = order_within_groups(preferred, groups, descending=True).view(-1, 2)
    same, first = groups[order], preferred[order]
    valid = (same[:, 0] == same[:, 1]) & first[:, 0] & ~first[:, 1]
    if groups.device.type == "cpu" and not bool(valid.all()):
        raise _pair_error(groups, preferred)
    nan_if_invalid = torch.zeros(len(order), dtype=torch.float64, device=groups.device)
    return Pairs(order[:, 0], order[:, 1], nan_if_invalid.masked_fill(~valid, torch.nan))


def _pair_error(groups: Tensor, preferred: Tensor) -> InputError:
    """Return an error that names the first group that is not a pair."""
    members = (
        (group, preferred[groups == group].tolist()) for group in torch.unique(groups).tolist()
    )
    group, flags = next((g, f) for g, f in members if len(f) != 2 or sum(f) != 1)
    return InputError(
        "preferred",
        "two sequences in each group, exactly one of them preferred",
        f"group {group} with {len(flags)} sequences, {sum(flags)} preferred",
    )


def order_within_groups(keys: Tensor, groups: Tensor, *, descending: bool) -> Tensor:
    """Return the ``[S]`` order by group, then by key; ties keep their order."""
    by_key = keys.argsort(stable=True, descending=descending)
    return by_key[groups[by_key].argsort(stable=True)]


def pair_terms(
    inputs: LossInputs, implicit_rewards: Tensor, surrogate: Callable[[Tensor], Tensor]
) -> Terms:
    """Return ``surrogate(margin)`` of each pair's implicit rewards, given per sequence ``[S]``."""
    pairs = pair_up(inputs)
    chosen, rejected = pairs.split(implicit_rewards)
    return Terms(surrogate(chosen - rejected), pair_metrics(inputs, pairs, implicit_rewards))


def pair_metrics(inputs: LossInputs, pairs: Pairs, implicit_rewards: Tensor) -> dict[str, Tensor]:
    """Return means over pairs of log-probs and of implicit rewards, given per sequence ``[S]``."""
    chosen, rejected = pairs.split(implicit_rewards.detach())
    logps = inputs.logps.detach()
    return _preference_metrics(
        chosen,
        rejected,
        logps[pairs.chosen],
        logps[pairs.rejected],
        _ones(len(chosen), inputs),
    )


# Means and metrics.


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over units, whose number is the sum of the weights; 0 when there is none."""
    return (weights * values).sum() / weights.sum().clamp(min=1)


def reward_preference_metrics(inputs: LossInputs, implicit_rewards: Tensor) -> dict[str, Tensor]:
    """Return the metrics of a pair for any number of responses with rewards.

    Chosen is the response with the highest reward of its group, rejected the one with the lowest,
    the first of each where several tie. A group whose rewards are all equal has no order to predict
    and counts one half in the accuracy.
    """
    rewards = inputs.require("rewards")
    groups = inputs.groups
    if groups is None:
        groups = torch.arange(inputs.num_sequences, device=rewards.device)
    best = order_within_groups(rewards, groups, descending=True)
    worst = order_within_groups(rewards, groups, descending=False)
    ordered = groups[best]
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    implicit, logps = implicit_rewards.detach(), inputs.logps.detach()
    return _preference_metrics(
        implicit[best],
        implicit[worst],
        logps[best],
        logps[worst],
        starts.double(),
        tied=rewards[best] == rewards[worst],
    )


def _preference_metrics(
    chosen: Tensor,
    rejected: Tensor,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    weights: Tensor,
    tied: Tensor | None = None,
) -> dict[str, Tensor]:
    margin = chosen - rejected
    correct = (margin > 0).double()
    if tied is not None:
        correct = correct.masked_fill(tied, 0.5)
    columns = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margin,
        "rewards/accuracies": correct,
        "logps/chosen": chosen_logps,
        "logps/rejected": rejected_logps,
    }
    return {name: weighted_mean(column, weights) for name, column in columns.items()}


# Hyperparameters.


def check_positive(name: str, value: float) -> float:
    if not value > 0:
        raise InputError(name, "a number above 0", value)
    return value


def check_not_negative(name: str, value: float) -> float:
    if not value >= 0:
        raise InputError(name, "a number of at least 0", value)
    return value


def check_fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise InputError(name, "a number from 0 to 1", value)
    return value
