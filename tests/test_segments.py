"""Segment sums against loops over Python floats."""

from __future__ import annotations

import math

import pytest
import torch

from rao_kernels.segments import segment_lengths, segment_offsets, segment_sum


def test_sums_lengths_and_empty_segments() -> None:
    segments = torch.tensor([1, 1, 1, 3, 4, 4])
    values = torch.tensor([0.1, 0.2, 0.3, -4.0, 5.0, 6.0])
    total = segment_sum(values, segments, 6)
    assert total.dtype == torch.float64
    expected = [0.0, math.fsum(values[:3].tolist()), 0.0, -4.0, 11.0, 0.0]
    torch.testing.assert_close(total, torch.tensor(expected, dtype=torch.float64))
    assert segment_lengths(segments, 6).tolist() == [0, 3, 0, 1, 2, 0]
    assert segment_offsets(segments, 6).tolist() == [0, 0, 3, 3, 4, 6, 6]


def test_no_tokens() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    assert segment_sum(torch.zeros(0), empty, 3).tolist() == [0.0, 0.0, 0.0]


def test_accumulates_in_fp64() -> None:
    values = torch.full((40_000,), 1e-3).index_fill(0, torch.tensor([0]), 1e6)
    total = segment_sum(values, torch.zeros(40_000, dtype=torch.int64), 1)
    assert total.item() == pytest.approx(math.fsum(values.tolist()), rel=1e-14)


def test_nan_stays_in_its_segment() -> None:
    values = torch.tensor([1.0, math.nan, 3.0])
    total = segment_sum(values, torch.tensor([0, 1, 2]), 3)
    assert total[0] == 1
    assert total[1].isnan()
    assert total[2] == 3


def test_same_bits_every_time() -> None:
    values, segments = torch.randn(10_000), torch.randint(0, 50, (10_000,)).sort().values
    first = segment_sum(values, segments, 50)
    assert all(torch.equal(first, segment_sum(values, segments, 50)) for _ in range(5))


def test_gradient() -> None:
    segments = torch.tensor([0, 0, 2, 2, 2])
    values = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: segment_sum(v, segments, 4), values)
    assert torch.autograd.gradgradcheck(lambda v: segment_sum(v, segments, 4).square(), values)
    strided = torch.randn(10, requires_grad=True)
    (segment_sum(strided[::2], segments, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert strided.grad is not None
    assert strided.grad.tolist() == [1, 0, 1, 0, 3, 0, 3, 0, 3, 0]
