"""Records as losses read them: pairs, labels, gold answers, mismatched prompts and responses.

Each function takes records one after another and yields them so, for data larger than memory. What
it does to them is complete in the report once the last one was yielded. A record that is as it
shall be is yielded as the same object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import DataError, InputError
from .records import DataReport
from .tokenize import TokenizeOptions
from .tokenized import TokenizedRow, take_responses


class SingleRecordError(DataError):
    """A loss that reads responses to other prompts got a single record."""


def as_pairs(rows: Iterable[TokenizedRow], report: DataReport) -> Iterator[TokenizedRow]:
    """Reduce each record to a pair: the preferred response, then the lowest-rewarded other one.

    The preferred one is a pair's chosen response, or the one of the highest reward. Records
    without an order (all rewards equal, all marked alike, or one response) are dropped and counted
    in the report.

    Args:
        rows: tokenized records.
        report: dropped records and responses are counted in it.

    Yields:
        Records of two responses, the preferred one first.
    """
    for row in rows:
        if row.gold_marks is not None:  # a pair already, with its gold answer
            yield row
            continue
        pair = _as_pair(row)
        if pair is None:
            report.rows_without_pair += 1
            continue
        report.responses_beside_pair += len(row.responses) - 2
        yield pair


def mark_preferred(rows: Iterable[TokenizedRow]) -> Iterator[TokenizedRow]:
    """Mark the preferred responses: a pair's chosen one, else every one of the highest reward.

    Records with neither stay as they are.
    """
    for row in rows:
        if row.preferred is None and row.rewards is not None:
            best = max(row.rewards)
            row = replace(row, preferred=[reward == best for reward in row.rewards])
        yield row


def drop_unlabelled(rows: Iterable[TokenizedRow], report: DataReport) -> Iterator[TokenizedRow]:
    """Drop the records without a preferred response whose rewards are all equal.

    Args:
        rows: tokenized records.
        report: names the dropped records in `rows_without_label`.
    """
    for row in rows:
        if row.preferred is None and len(set(row.rewards or ())) < 2:
            report.rows_without_label.append(row.where)
        else:
            yield row


def with_gold(
    rows: Iterable[TokenizedRow], options: TokenizeOptions, report: DataReport, *, rewarded: bool
) -> Iterator[TokenizedRow]:
    """Append the gold answer of each record to its responses, marked in `gold_marks`.

    It counts as preferred. Records whose gold answer does not fit `options.max_length` are dropped
    and counted in the report, unless responses are truncated.

    Args:
        rows: tokenized records.
        options: what the responses were tokenized with.
        report: dropped records are counted in it.
        rewarded: True appends the gold answer's reward to the rewards; False removes the rewards,
            which would not be complete.

    Raises:
        DataError: a record has no gold answer, or no reward of it where that is asked for.
    """
    for row in rows:
        if row.gold_marks is not None:
            yield row
            continue
        _check_gold(row, rewarded)
        fitted = _append_gold(row, options, rewarded)
        if fitted is None:
            report.rows_gold_too_long += 1
        else:
            yield fitted


def pair_mismatched(
    rows: Iterable[TokenizedRow], block: int, max_length: int
) -> Iterator[TokenizedRow]:
    """Give each response one to another prompt, of which KTO estimates its KL term.

    Within consecutive blocks of `block` records, response j of a record gets response j of the
    record before it, counted on from the first where that one has fewer; the first record of a
    block gets them of its last one. This is TRL's rule for KTO, where a block is a batch. A last
    block of a single record joins the block before.

    Args:
        rows: tokenized records.
        block: records of a block, at least 2.
        max_length: tokens that a prompt and the other response may have; a longer one is cut.

    Raises:
        InputError: `block` is below 2.
        SingleRecordError: there is only one record.
    """
    if block < 2:
        fix = "A block of one record has no other prompt's responses."
        raise InputError("block", "at least 2 records", block, fix)
    held: list[TokenizedRow] = []
    for row in rows:
        held.append(row)
        # Two records more than a block: what follows it is not a single one.
        if len(held) == block + 2:
            yield from _cycled(held[:block], max_length)
            held = held[block:]
    if len(held) == 1:
        problem = "it is the only record, and KTO's KL term needs the responses to another prompt"
        raise SingleRecordError(
            held[0].where, problem, "Add records, or take a loss such as `bco`."
        )
    yield from _cycled(held, max_length)


def _as_pair(row: TokenizedRow) -> TokenizedRow | None:
    """Return the record with its best and its worst response; None if all are equally good."""
    everyone = range(len(row.responses))
    rewards, marks = row.rewards, row.preferred
    if len(row.responses) < 2 or (rewards is None and marks is None):
        return None
    best_of = [j for j in everyone if marks is None or marks[j]]
    others = [j for j in everyone if marks is None or not marks[j]]
    if not best_of or not others:
        return None
    best = best_of[0] if rewards is None else max(best_of, key=rewards.__getitem__)
    worst = others[0] if rewards is None else min(others, key=rewards.__getitem__)
    if marks is None and rewards is not None and rewards[worst] == rewards[best]:
        return None
    if len(row.responses) == 2 and marks == [True, False]:
        return row
    return replace(take_responses(row, [best, worst]), preferred=[True, False])


def _check_gold(row: TokenizedRow, rewarded: bool) -> None:
    if row.gold is None:
        fix = "Give the column `gold`, a text, in every record."
        raise DataError(row.where, "no gold answer, which the loss needs", fix)
    if rewarded and row.rewards is not None and row.gold_reward is None:
        problem = "no reward of its gold answer, which the loss needs"
        fix = "Fill the column `gold_reward` with `rao-kernels annotate`."
        raise DataError(row.where, problem, fix)


def _append_gold(
    row: TokenizedRow, options: TokenizeOptions, rewarded: bool
) -> TokenizedRow | None:
    """Return the record with its gold answer as the last response; None if it does not fit."""
    assert row.gold is not None
    budget = options.max_length - len(row.prompt)
    if len(row.gold) > budget and not options.truncate_responses:
        return None
    masks = None
    if row.masks is not None or row.gold_mask is not None:
        gold_mask = _all_true(row.gold) if row.gold_mask is None else row.gold_mask
        masks = [*(row.masks or map(_all_true, row.responses)), gold_mask[:budget]]
    rewards = None
    if rewarded and row.rewards is not None and row.gold_reward is not None:
        rewards = [*row.rewards, row.gold_reward]
    return replace(
        row,
        responses=[*row.responses, row.gold[:budget]],
        masks=masks,
        rewards=rewards,
        preferred=None if row.preferred is None else [*row.preferred, True],
        gold_marks=[False] * len(row.responses) + [True],
        # Nothing is known of the gold answer in these.
        token_inputs={},
        reward_ensemble=None,
    )


def _all_true(ids: Tensor) -> Tensor:
    return torch.ones(len(ids), dtype=torch.bool)


def _cycled(block: list[TokenizedRow], max_length: int) -> Iterator[TokenizedRow]:
    for number, row in enumerate(block):
        if row.kl_responses is not None:
            yield row
            continue
        others, budget = block[number - 1].responses, max_length - len(row.prompt)
        found = [others[j % len(others)][:budget] for j in range(len(row.responses))]
        yield replace(row, kl_responses=found)
