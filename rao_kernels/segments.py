"""Sums over runs of tokens: differentiable, in fp64, bitwise reproducible.

Legend: N tokens, S segments. `segments` ``[N]`` names the segment of each token, ascending;
a segment may be empty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def segment_offsets(segments: Tensor, num_segments: int) -> Tensor:
    """Return ``[S + 1]`` int64; segment s has tokens ``offsets[s]`` up to ``offsets[s + 1]``."""
    edges = torch.arange(num_segments + 1, device=segments.device, dtype=segments.dtype)
    return torch.searchsorted(segments.contiguous(), edges)


def segment_lengths(segments: Tensor, num_segments: int) -> Tensor:
    """Return ``[S]`` int64, the number of tokens in each segment."""
    return segment_offsets(segments, num_segments).diff()


def segment_sum(values: Tensor, segments: Tensor, num_segments: int) -> Tensor:
    """Sum `values` ``[N]`` within each segment, accumulated in fp64 without atomics.

    Returns:
        ``[S]`` fp64; 0 for an empty segment. A NaN stays within its own segment.
    """
    offsets = segment_offsets(segments, num_segments)
    total: Tensor = _SegmentSum.apply(  # type: ignore[no-untyped-call]
        values.double(), segments, offsets
    )
    return total


class _SegmentSum(torch.autograd.Function):
    """`torch.segment_reduce` with a faster backward: a gather, where torch's own is serial."""

    @staticmethod
    def forward(values: Tensor, segments: Tensor, offsets: Tensor) -> Tensor:
        # `unsafe` skips checks that read the offsets on the host; these are right by construction.
        return torch.segment_reduce(
            values.contiguous(), "sum", offsets=offsets, unsafe=True, initial=0
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor, None, None]:
        (segments,) = ctx.saved_tensors
        return dtotal[segments], None, None
