"""Pairs, gold answers and mismatched responses; all that a record has per response follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rao_kernels.data import (
    DataReport,
    TokenizedRow,
    TokenizeOptions,
    as_pairs,
    pair_mismatched,
    with_gold,
)
from rao_kernels.errors import DataError, InputError


def ids(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def row(number: int = 0, responses: int = 3, **changes: Any) -> TokenizedRow:
    """Response j of record i is the tokens (10 i + j, 5)."""
    found = [ids(10 * number + j, 5) for j in range(responses)]
    return replace(TokenizedRow(ids(1, 2), found, None, None, f"r{number}"), **changes)


def full_row() -> TokenizedRow:
    """A record that has everything there is per response."""
    return row(
        rewards=[0.0, 2.0, 1.0],
        masks=[torch.tensor([True, j > 0]) for j in range(3)],
        token_inputs={"old_token_logps": [torch.tensor([-1.0, -j]) for j in range(3)]},
        reward_ensemble=[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        kl_responses=[ids(100 + j) for j in range(3)],
    )


def test_everything_of_a_response_follows_it_into_a_pair() -> None:
    (pair,) = as_pairs([full_row()], DataReport())
    assert [one.tolist() for one in pair.responses] == [[1, 5], [0, 5]]
    assert pair.rewards == [2.0, 0.0]
    assert pair.preferred == [True, False]
    assert pair.masks is not None and pair.kl_responses is not None
    assert [mask.tolist() for mask in pair.masks] == [[True, True], [True, False]]
    assert [v.tolist() for v in pair.token_inputs["old_token_logps"]] == [[-1, -1], [-1, 0]]
    assert pair.reward_ensemble == [[1.0, 0.0], [4.0, 3.0]]
    assert [one.tolist() for one in pair.kl_responses] == [[101], [100]]


@pytest.mark.parametrize(
    ("preferred", "rewards", "expected"),
    [
        ([True, True, False], None, [0, 2]),
        ([True, True, False], [0.0, 1.0, 9.0], [1, 2]),
        ([False, True, False], [2.0, 0.0, 1.0], [1, 2]),
        ([False, False, True], None, [2, 0]),
        ([True, True, True], [0.0, 1.0, 2.0], None),
        ([False, False, False], None, None),
    ],
)
def test_a_pair_of_marked_responses_has_one_of_each(
    preferred: list[bool], rewards: list[float] | None, expected: list[int] | None
) -> None:
    """Marks decide which is preferred, rewards which of several."""
    report = DataReport()
    pairs = list(as_pairs([row(preferred=preferred, rewards=rewards)], report))
    found = [[int(one[0]) for one in pair.responses] for pair in pairs]
    assert found == ([] if expected is None else [expected])
    assert (report.rows_without_pair, report.responses_beside_pair) == (
        (1, 0) if expected is None else (0, 1)
    )


def test_single_labelled_responses_make_no_pair() -> None:
    report = DataReport()
    assert list(as_pairs([row(responses=1, preferred=[True])], report)) == []
    assert report.rows_without_pair == 1


def gold_rows(rows: Sequence[TokenizedRow], rewarded: bool = True, **options: Any) -> Any:
    report = DataReport()
    return list(with_gold(rows, TokenizeOptions(**options), report, rewarded=rewarded)), report


def test_gold_answer_is_the_last_response() -> None:
    given = replace(full_row(), gold=ids(7, 8, 9), gold_reward=5.0, preferred=[False, True, False])
    (one,), _ = gold_rows([given])
    assert [r.tolist() for r in one.responses] == [[0, 5], [1, 5], [2, 5], [7, 8, 9]]
    assert one.gold_marks == [False, False, False, True]
    assert one.rewards == [0.0, 2.0, 1.0, 5.0]
    assert one.preferred == [False, True, False, True]
    assert [mask.tolist() for mask in one.masks[-2:]] == [[True, True], [True, True, True]]
    again, _ = gold_rows([one])
    assert again[0] is one


def test_gold_answer_of_a_pair_makes_a_triple() -> None:
    given = row(rewards=[0.0, 2.0, 1.0], gold=ids(7))
    (one,), _ = gold_rows(list(as_pairs([given], DataReport())), rewarded=False)
    assert [int(r[0]) for r in one.responses] == [1, 0, 7]
    assert (one.preferred, one.gold_marks) == ([True, False, True], [False, False, True])
    assert one.rewards is None
    assert next(as_pairs([one], DataReport())) is one


def test_mask_of_the_gold_answer_is_kept() -> None:
    (one,), _ = gold_rows([row(responses=1, gold=ids(7, 8), gold_mask=torch.tensor([True, False]))])
    assert [mask.tolist() for mask in one.masks] == [[True, True], [True, False]]


def test_gold_answer_that_does_not_fit() -> None:
    rows = [row(0, gold=ids(7, 8, 9)), row(1, gold=ids(7, 8))]
    kept, report = gold_rows(rows, max_length=4)
    assert [one.where for one in kept] == ["r1"]
    assert "1 prompts dropped (the gold answer does not fit max_length)" in report.describe()
    cut, _ = gold_rows(rows, max_length=4, truncate_responses=True)
    assert [one.responses[-1].tolist() for one in cut] == [[7, 8], [7, 8]]


def test_no_gold_answer_or_no_reward_of_it() -> None:
    with pytest.raises(DataError, match="r0: no gold answer, .* column `gold`"):
        gold_rows([row()])
    given = row(rewards=[0.0, 1.0, 2.0], gold=ids(7))
    with pytest.raises(DataError, match="r0: no reward of its gold answer.*rao-kernels annotate"):
        gold_rows([given])
    assert gold_rows([given], rewarded=False)[0][0].rewards is None


def trl_blocks(numbers: list[int], block: int) -> list[int]:
    """The record whose completion each gets, as TRL's KTOTrainer rotates batches of `map`."""
    found: list[int] = []
    for first in range(0, len(numbers), block):
        batch = numbers[first : first + block]
        found += [batch[-1], *batch[:-1]]
    return found


@pytest.mark.parametrize("block", [2, 3, 4])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 8, 9])
def test_mismatched_responses_are_those_of_trl(count: int, block: int) -> None:
    """But for a last block of one record, which TRL pairs with its own response."""
    rows = list(pair_mismatched([row(i, 1) for i in range(count)], block, 100))
    assert [one.where for one in rows] == [f"r{i}" for i in range(count)]
    found = [int(one.kl_responses[0][0]) // 10 for one in rows if one.kl_responses]
    expected = trl_blocks(list(range(count)), block)
    if count % block == 1:
        start = count - block - 1
        expected[start:] = [count - 1, *range(start, count - 1)]
    assert found == expected
    assert all(other != number for number, other in enumerate(found))


def test_mismatched_responses_of_unequal_counts_and_lengths() -> None:
    first, second = row(0, 3), row(1, 2, prompt=ids(1, 2, 3))
    a, b = pair_mismatched([first, second], 8, 4)
    assert a.kl_responses is not None and b.kl_responses is not None
    assert [one.tolist() for one in a.kl_responses] == [[10, 5], [11, 5], [10, 5]]
    assert [one.tolist() for one in b.kl_responses] == [[0], [1]], "cut to max_length"
    assert all(
        one is other for one, other in zip((a, b), pair_mismatched([a, b], 8, 4), strict=True)
    )


def test_mismatched_responses_need_two_records() -> None:
    with pytest.raises(DataError, match="r0: it is the only record"):
        list(pair_mismatched([row()], 4, 100))
    with pytest.raises(InputError, match="`block`: expected at least 2 records, got 1"):
        list(pair_mismatched([row(), row(1)], 1, 100))


def test_transforms_read_no_further_than_they_must() -> None:
    """Data larger than memory: of a million records few are held at once."""
    made = 0

    def many() -> Any:
        nonlocal made
        for number in range(1_000_000):
            made += 1
            yield row(number % 3, 2, rewards=[0.0, 1.0], gold=ids(7), gold_reward=1.0)

    report = DataReport()
    paired = as_pairs(many(), report)
    golden = with_gold(paired, TokenizeOptions(), report, rewarded=True)
    rows = pair_mismatched(golden, 4, 100)
    for _ in range(10):
        next(rows)
    assert made <= 10 + 2 * 4
