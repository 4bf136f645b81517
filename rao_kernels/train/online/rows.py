"""From a round's rollouts to the examples that its loss is trained on.

Everything here follows from the rollouts alone, so that each rank, and a run that is resumed, gets
the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...data import (
    DataReport,
    Example,
    Reference,
    TokenizedRow,
    as_pairs,
    drop_unlabelled,
    mark_preferred,
)
from ...errors import DataError
from .config import OnlineConfig
from .returns import advantages_and_returns, token_rewards, whiten, win_rates
from .rollouts import Lists, Rollout

# Kept as an input per token while responses are chosen; then it becomes the `Reference`.
_REF = "ref_token_logps"


@dataclass(frozen=True)
class RoundExample:
    """A prompt of a round; counted: False if the loss can learn nothing from it.

    A loss of pairs learns nothing where all rewards are equal. Such a prompt takes part in a
    micro-batch only if there is no other, and then with the weight 0.
    """

    example: Example
    counted: bool


def examples_of(rollouts: Sequence[Rollout], args: OnlineConfig) -> list[RoundExample]:
    """Return an example for each rollout, as the loss reads it.

    A rollout without rewards is not counted, and another one's example is in its place.

    Raises:
        DataError: no rollout has rewards.
    """
    check_scored(rollouts)
    own = iter(_scored_examples([one for one in rollouts if one.unscored is None], args))
    found = [None if one.unscored is not None else next(own) for one in rollouts]
    instead = next(one.example for one in found if one is not None)
    return [RoundExample(instead, counted=False) if one is None else one for one in found]


def check_scored(rollouts: Sequence[Rollout]) -> None:
    """Raise if no rollout has rewards."""
    if all(one.unscored is not None for one in rollouts):
        first = rollouts[0]
        problem = f"no response of any prompt sampled with it got a reward: {first.unscored}"
        raise DataError(first.where, problem)


def _scored_examples(rollouts: Sequence[Rollout], args: OnlineConfig) -> list[RoundExample]:
    rows = [_row(rollout, args) for rollout in rollouts]
    if args.estimates_advantages:
        rows = _with_returns(rows, args)
    found = []
    for row, rollout in zip(rows, rollouts, strict=True):
        usable = _as_loss_reads(row, args)
        example = _example(usable or _filler(row, args), rollout, args)
        found.append(RoundExample(example, counted=usable is not None))
    return found


def _row(rollout: Rollout, args: OnlineConfig) -> TokenizedRow:
    """Return the record of the sampled responses; its gold answer follows in `_with_gold`."""
    assert rollout.rewards is not None
    rewards, count = rollout.rewards, len(rollout.rewards)
    if any("rewards" in spec.probabilities for spec, _ in args.spec.bound_parts({})):
        rewards = win_rates(rewards)
    named = _token_values(rollout)
    responses = [torch.tensor(ids, dtype=torch.int32) for ids in rollout.response_ids]
    return TokenizedRow(
        torch.tensor(rollout.prompt_ids, dtype=torch.int32),
        responses,
        rewards,
        None,
        rollout.where,
        masks=_masks(rollout, responses) if args.mask_truncated_completions else None,
        token_inputs={name: _tensors(lists[:count]) for name, lists in named.items()},
        ref_rewards=rollout.columns.get("ref_rewards"),
    )


def _token_values(rollout: Rollout) -> dict[str, Lists]:
    named = {name: getattr(rollout, name) for name in ("old_token_logps", "old_values", _REF)}
    return {name: lists for name, lists in named.items() if lists is not None}


def _masks(rollout: Rollout, responses: Sequence[Tensor]) -> list[Tensor]:
    return [
        torch.full((len(ids),), whole, dtype=torch.bool)
        for ids, whole in zip(responses, rollout.finished, strict=True)
    ]


def _with_gold(row: TokenizedRow, rollout: Rollout) -> TokenizedRow:
    """Append the gold answer, which counts as preferred where the others are labelled."""
    assert rollout.gold_ids is not None and rollout.gold_reward is not None
    ids = torch.tensor(rollout.gold_ids, dtype=torch.int32)
    last = {name: lists[-1] for name, lists in _token_values(rollout).items()}
    return replace(
        row,
        responses=[*row.responses, ids],
        rewards=None if row.rewards is None else [*row.rewards, rollout.gold_reward],
        preferred=None if row.preferred is None else [*row.preferred, True],
        masks=None if row.masks is None else [*row.masks, torch.ones_like(ids, dtype=torch.bool)],
        token_inputs={k: [*v, _tensors([last[k]])[0]] for k, v in row.token_inputs.items()},
        gold_marks=[False] * len(row.responses) + [True],
    )


def _with_returns(rows: Sequence[TokenizedRow], args: OnlineConfig) -> list[TokenizedRow]:
    """Add PPO's advantages and returns of all responses; advantages are whitened over them."""
    found: list[tuple[Tensor, Tensor]] = []
    for row in rows:
        inputs = row.token_inputs
        for j, reward in enumerate(row.rewards or ()):
            reference = inputs[_REF][j] if args.kl_coef else None
            rewards = token_rewards(reward, inputs["old_token_logps"][j], reference, args.kl_coef)
            options = {"gamma": args.gamma, "gae_lambda": args.gae_lambda}
            found.append(advantages_and_returns(rewards, inputs["old_values"][j], **options))
    advantages = [advantage for advantage, _ in found]
    if args.whiten_advantages:
        advantages = whiten(advantages)
    own = iter(zip(advantages, (returns for _, returns in found), strict=True))
    result = []
    for row in rows:
        parts = [next(own) for _ in row.responses]
        added = {
            "advantages": [advantage.float() for advantage, _ in parts],
            "returns": [returns.float() for _, returns in parts],
        }
        result.append(replace(row, token_inputs={**row.token_inputs, **added}))
    return result


def _as_loss_reads(row: TokenizedRow, args: OnlineConfig) -> TokenizedRow | None:
    """Return the record with its pair or its labels; None if its rewards give none."""
    needs, report = _needs(args), DataReport()
    rows = [row]
    if args.spec.unit == "pair":
        rows = list(as_pairs(rows, report))
    elif "preferred" in (*needs, *args.spec.optional):
        if "preferred" in needs:
            rows = list(drop_unlabelled(rows, report))
        rows = list(mark_preferred(rows))
    return rows[0] if rows else None


def _filler(row: TokenizedRow, args: OnlineConfig) -> TokenizedRow:
    """Return a record that the loss can be computed on, for a weight of 0."""
    marks = [True] + [False] * (len(row.responses) - 1)
    marked = replace(row, preferred=marks)
    if args.spec.unit != "pair":
        return marked
    (pair,) = as_pairs([replace(marked, rewards=None)], DataReport())
    return replace(pair, rewards=None if row.rewards is None else row.rewards[:2])


def _example(row: TokenizedRow, rollout: Rollout, args: OnlineConfig) -> Example:
    """Add the gold answer, and move the reference's log-probs per token to a `Reference`."""
    if rollout.gold_ids is not None:
        row = _with_gold(row, rollout)
    inputs = dict(row.token_inputs)
    tokens = inputs.pop(_REF, None)
    if "old_token_logps" not in _needs(args):
        inputs.pop("old_token_logps", None)
    row = replace(row, token_inputs=inputs)
    if tokens is None:
        return Example(row, None)
    longest = len(row.prompt) + max(map(len, row.responses))
    padded = torch.zeros(len(tokens), longest)
    first = len(row.prompt) - 1
    for values, own in zip(tokens, padded, strict=True):
        own[first : first + len(values)] = values
    sums = torch.stack([values.double().sum() for values in tokens])
    return Example(row, Reference(rollout.ref_prompt_logp or 0.0, sums, padded.flatten()))


def _tensors(values: Lists) -> list[Tensor]:
    return [torch.tensor(one, dtype=torch.float32) for one in values]


def _needs(args: OnlineConfig) -> tuple[str, ...]:
    return args.spec.required_inputs(args.hyperparameters())
