"""Statistics of rewards and lengths, against numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from rao_kernels.data import (
    DataReport,
    TokenizedRow,
    TokenizeOptions,
    dataset_statistics,
    load_records,
    tokenize_records,
)
from tests import seeds
from tests.train.tiny import tiny_rows, tiny_tokenizer


def row(prompt: int, responses: list[int], rewards: list[float] | None) -> TokenizedRow:
    return TokenizedRow(torch.zeros(prompt), [torch.zeros(n) for n in responses], rewards, None, "")


def test_numbers_are_those_of_numpy() -> None:
    chance = seeds.numpy_generator()
    rows = [
        row(int(p), chance.integers(0, 50, k).tolist(), chance.normal(3, 2, k).tolist())
        for p, k in zip(chance.integers(1, 90, 41), chance.integers(1, 4, 41), strict=True)
    ]
    found = dataset_statistics(iter(rows))
    given = {
        "prompt_tokens": [len(one.prompt) for one in rows],
        "response_tokens": [len(ids) for one in rows for ids in one.responses],
        "rewards": [reward for one in rows for reward in one.rewards or ()],
    }
    for name, numbers in given.items():
        summary = getattr(found, name)
        assert summary.count == len(numbers)
        assert summary.mean == pytest.approx(np.mean(numbers))
        assert summary.sd == pytest.approx(np.std(numbers))
        quartiles = [
            *(summary.minimum, summary.quartile_1, summary.median),
            *(summary.quartile_3, summary.maximum),
        ]
        expected = np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1], method="nearest")
        assert quartiles == pytest.approx(expected.tolist())


def test_share_of_equal_rewards_is_of_prompts_with_several() -> None:
    rows = [row(1, [1, 1], [0.0, 0.0]), row(1, [1, 1], [0.0, 1.0]), row(1, [1], [0.0])]
    assert dataset_statistics(rows).equal_rewards == 0.5
    assert "50.0% of the prompts have equal rewards" in dataset_statistics(rows).describe()


def test_without_rewards() -> None:
    found = dataset_statistics([row(3, [4], None)])
    assert (found.rewards, found.equal_rewards) == (None, None)
    assert found.describe().splitlines()[0].startswith("prompt tokens: mean 3")
    assert "rewards" not in found.describe()
    assert dataset_statistics([]).prompt_tokens is None


def test_share_that_does_not_fit() -> None:
    records = load_records(tiny_rows(7, responses=(3,)))
    for cut in (False, True):
        report = DataReport()
        options = TokenizeOptions(max_length=19, truncate_responses=cut)
        rows = tokenize_records(records, tiny_tokenizer(), options, bad_rows="skip", report=report)
        found = dataset_statistics(rows, report)
        left_out = sum(3 - len(one.responses) for one in rows)
        whole = tokenize_records(records, tiny_tokenizer(), TokenizeOptions())
        kept = {one.where for one in rows}
        long = [
            len(one.prompt) + len(ids) > 19
            for one in whole
            if one.where in kept
            for ids in one.responses
        ]
        share = pytest.approx(sum(long) / len(long))
        assert sum(long) > 0
        assert (found.truncated, found.dropped) == ((share, 0.0) if cut else (0.0, share))
        assert left_out == (0 if cut else sum(long))


def test_dict_is_json() -> None:
    rows = tokenize_records(load_records(tiny_rows(5)), tiny_tokenizer(), TokenizeOptions())
    given = dataset_statistics(rows).as_dict()
    assert json.loads(json.dumps(given)) == given
    assert given["rewards"]["count"] == sum(len(one.responses) for one in rows)
