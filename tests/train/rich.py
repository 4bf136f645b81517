"""Tokenized records that hold what every loss needs: gold answers, old log-probs and the rest."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rao_kernels.data import (
    PreferenceDataset,
    TokenizedRow,
    TokenizeOptions,
    load_records,
    tokenize_records,
)
from tests import seeds
from tests.train.tiny import tiny_rows, tiny_tokenizer


def rich_dataset(count: int = 5, *, gold: bool = False) -> PreferenceDataset:
    """Pairs, the first response preferred; with `gold` a third response is the gold answer."""
    records = load_records(tiny_rows(count, responses=(3,) if gold else (2,)))
    rows = tokenize_records(records, tiny_tokenizer(), TokenizeOptions())
    return PreferenceDataset([_enriched(rows, number, gold) for number in range(count)])


def _enriched(rows: list[TokenizedRow], number: int, gold: bool) -> TokenizedRow:
    row, other = rows[number], rows[number - 1]
    generator = seeds.generator(number)

    def numbers(size: int) -> list[float]:
        return torch.rand(size, generator=generator).tolist()

    def old(ids: Tensor) -> Tensor:
        return -4 * torch.rand(len(ids), generator=generator)

    size = len(row.responses)
    return replace(
        row,
        rewards=numbers(size),
        preferred=[True, False, *([True] * gold)],
        gold_marks=[False, False, True] if gold else None,
        ref_rewards=numbers(1 + number % 3),
        reward_ensemble=[numbers(size), numbers(size)],
        token_inputs={"old_token_logps": [old(ids) for ids in row.responses]},
        kl_responses=other.responses[:size],
    )
