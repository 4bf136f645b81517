"""`TokenizedRow`, a prompt and its responses as token ids, and how responses of it are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class TokenizedRow:
    """A prompt and its responses as int32 ids; ``prompt + responses[j]`` is sequence j.

    rewards, preferred: one value per response, or None where they are not known.
    masks: per response a bool per token, False where it is not scored (the turns of a user or a
        tool); None: every token is.
    token_inputs: inputs of a loss with a value per token, by name (`old_token_logps`): per response
        fp32 values of its tokens.
    gold, gold_mask, gold_reward: the gold answer's ids, its mask as one of `masks`, and its reward
        where it is known.
    gold_marks: True for the response that is the gold answer, once it is one of `responses`.
    ref_rewards, reward_ensemble: as of a `Record`.
    logp_temperature: what divided the logits that `old_token_logps` are of.
    kl_responses: per response, the response to another prompt that KTO pairs this prompt with.
    """

    prompt: Tensor
    responses: list[Tensor]
    rewards: list[float] | None
    preferred: list[bool] | None
    where: str
    masks: list[Tensor] | None = None
    token_inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    gold: Tensor | None = None
    gold_mask: Tensor | None = None
    gold_reward: float | None = None
    gold_marks: list[bool] | None = None
    ref_rewards: list[float] | None = None
    reward_ensemble: list[list[float]] | None = None
    kl_responses: list[Tensor] | None = None
    logp_temperature: float = 1.0


def take_responses(row: TokenizedRow, kept: Sequence[int]) -> TokenizedRow:
    """Return the record with the responses at the positions `kept`, in that order.

    All that the record holds per response follows.
    """
    ensemble = row.reward_ensemble
    return replace(
        row,
        responses=_take(row.responses, kept),
        rewards=_take_known(row.rewards, kept),
        preferred=_take_known(row.preferred, kept),
        masks=_take_known(row.masks, kept),
        token_inputs={name: _take(values, kept) for name, values in row.token_inputs.items()},
        gold_marks=_take_known(row.gold_marks, kept),
        reward_ensemble=None if ensemble is None else [_take(one, kept) for one in ensemble],
        kl_responses=_take_known(row.kl_responses, kept),
    )


def cut_responses(row: TokenizedRow, budget: int) -> TokenizedRow:
    """Return the record with at most `budget` tokens of each response, and of what is per token."""
    return replace(
        row,
        responses=_cut(row.responses, budget),
        masks=None if row.masks is None else _cut(row.masks, budget),
        token_inputs={name: _cut(values, budget) for name, values in row.token_inputs.items()},
    )


def _take(values: Sequence[Value], kept: Sequence[int]) -> list[Value]:
    return [values[position] for position in kept]


def _take_known(values: Sequence[Value] | None, kept: Sequence[int]) -> list[Value] | None:
    return None if values is None else _take(values, kept)


def _cut(values: Sequence[Tensor], budget: int) -> list[Tensor]:
    return [value[:budget] for value in values]
