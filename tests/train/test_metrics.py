"""Means over micro-batches are means over units, and what ranks repeat counts nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rao_kernels.data import (
    Collator,
    PreferenceDataset,
    TokenizeOptions,
    load_records,
    tokenize_records,
)
from rao_kernels.losses import LOSSES
from rao_kernels.train.metrics import Meter, count_units, drop_repeated
from tests.train.tiny import tiny_rows, tiny_tokenizer


def alone(values: Tensor, how: str) -> Tensor:
    return values


def scalars(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_weighted_mean_and_maximum() -> None:
    meter = Meter()
    meter.update(scalars(a=1.0, b_max=3.0), torch.tensor(1))
    meter.update(scalars(a=4.0, b_max=-1.0), torch.tensor(2))
    assert meter.pop(alone) == {"a": 3.0, "b_max": 3.0}
    assert meter.pop(alone) == {}


def test_nothing_comes_from_no_unit() -> None:
    meter = Meter()
    meter.update(scalars(a=float("nan"), b_max=9.0), torch.tensor(0))
    meter.update(scalars(a=2.0, b_max=1.0), torch.tensor(1))
    assert meter.pop(alone) == {"a": 2.0, "b_max": 1.0}
    meter.update(scalars(a=float("nan")), torch.tensor(0))
    assert meter.pop(alone) == {}


def test_standard_deviation_is_pooled() -> None:
    values = torch.randn(9, dtype=torch.float64) + 50
    meter = Meter()
    for part in (values[:2], values[2:3], values[3:]):
        std = (part - part.mean()).square().mean().sqrt()
        meter.update({"z_mean": part.mean(), "z_std": std}, torch.tensor(len(part)))
    found = meter.pop(alone)
    assert found["z_mean"] == pytest.approx(values.mean().item())
    assert found["z_std"] == pytest.approx(values.std(correction=0).item())


def test_ranks_are_joined() -> None:
    meter = Meter()
    meter.update(scalars(a=2.0, b_max=3.0), torch.tensor(1))

    def other_rank(values: Tensor, how: str) -> Tensor:
        return values * 2 if how == "sum" else values + 1

    assert meter.pop(other_rank) == {"a": 2.0, "b_max": 4.0}


@pytest.mark.parametrize(("rank", "remainder", "kept", "fresh"), [(0, 5, 3, 1), (1, 5, 2, 1)])
def test_repeated_prompts_are_dropped(rank: int, remainder: int, kept: int, fresh: int) -> None:
    """Of the last round of two ranks by three prompts only `remainder` are new."""
    assert_kept(rank, remainder, kept, fresh)


def test_a_rank_without_new_prompts_keeps_one_that_counts_nothing() -> None:
    assert_kept(1, 3, 1, 0)


def assert_kept(rank: int, remainder: int, kept: int, fresh: int) -> None:
    data = PreferenceDataset(
        tokenize_records(load_records(tiny_rows(3)), tiny_tokenizer(), TokenizeOptions())
    )
    examples = [data[i] for i in range(3)]
    loader = SimpleNamespace(dataset=range(6 + remainder))
    state = SimpleNamespace(end_of_dataloader=True, active_dataloader=loader)
    accelerator: Any = SimpleNamespace(num_processes=2, process_index=rank, gradient_state=state)
    batch = drop_repeated(Collator(0)(examples), accelerator, 3)
    expected = Collator(0)(examples[:kept])
    width = expected["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:, :width], expected["input_ids"])
    assert torch.equal(batch["rewards"], expected["rewards"])
    assert batch["fresh"] == fresh
    found = batch["sequences"]
    assert found.token_shape == tuple(batch["input_ids"].shape)
    for name in ("groups", "response_targets", "response_segments", "prompt_targets"):
        assert torch.equal(getattr(found, name), getattr(expected["sequences"], name)), name
    units = count_units(LOSSES["sft"], batch)
    assert int(units) == sum(
        len(ids) for example in examples[:kept] for ids in example.row.responses
    )
