"""Means over micro-batches are means over units."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rao_kernels.train.metrics import Meter


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
