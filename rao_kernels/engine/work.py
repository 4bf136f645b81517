"""Count the work of the engine, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Work:
    """Work done while recorded.

    rows_scored: rows projected in forward passes. rows_differentiated: rows of backward passes.
    gemm_flops: floating-point operations of the matrix products, 2 per multiply-add.
    row_tiles, row_tiles_kept: (row, tile) pairs of backward passes, and those not dropped.
    """

    rows_scored: int = 0
    rows_differentiated: int = 0
    gemm_flops: int = 0
    row_tiles: int = 0
    row_tiles_kept: int = 0


_recorders: list[Work] = []


@contextmanager
def record_work() -> Iterator[Work]:
    """Record the work done inside the block, by every thread of the process."""
    work = Work()
    _recorders.append(work)
    try:
        yield work
    finally:
        _recorders.remove(work)


def count(**done: int) -> None:
    """Add to every active recorder; names are fields of `Work`."""
    for work in _recorders:
        for name, amount in done.items():
            setattr(work, name, getattr(work, name) + amount)
