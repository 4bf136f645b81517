"""The plan of a call: tiles, workspace, slots of retained tiles, dtypes, sparsity.

`make_plan` is a pure function of shapes, dtype, backend and options, so that the compiler's fake
tensors, the forward and the backward pass all get the same plan.
Legend: N rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from .. import backends
from ..backends import Precision, Tile, precision_of

DEFAULT_WORKSPACE_CAP = 1 << 30  # bytes
ALIGNMENT = 64  # bytes, of each slot


class Span(NamedTuple):
    """Bytes ``start:stop`` of the workspace."""

    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """Everything that forward and backward of a call must agree on.

    rows, vocabulary, size: N, V and D of the call, N before any row is left out.
    tiles: the vocabulary in the order of the walk; the last tile may be narrower.
    workspace_bytes: size of the buffer that carries retained tiles from forward to backward.
    tolerance: probability mass that a row may drop in backward; 0 makes the backward dense.
    retained_cost: see `Traits`; decides how many tiles a sparse pass retains.
    """

    backend: str
    rows: int
    vocabulary: int
    size: int
    tiles: tuple[Tile, ...]
    workspace_bytes: int
    precision: Precision
    tolerance: float
    retained_cost: int

    @property
    def width(self) -> int:
        """Vocabulary entries of every tile but the last."""
        return self.tiles[0].width

    @property
    def sparse(self) -> bool:
        """True if rows may drop tiles in backward."""
        return self.tolerance > 0.0

    def slots(self, rows: int) -> list[Span | None]:
        """Return for each tile its bytes in the workspace, or None if it is recomputed.

        The first tiles that fit are retained. rows: number of rows that forward scored; with fewer
        than the plan's, more tiles fit.
        """
        if rows == 0:
            return [None] * len(self.tiles)
        whole, last = _retained_bytes(self.backend, rows, self.tiles, self.precision)
        starts = [number * aligned(whole) for number in range(len(self.tiles))]
        stops = [*(start + whole for start in starts[:-1]), starts[-1] + last]
        return [
            Span(start, stop) if aligned(stop) <= self.workspace_bytes else None
            for start, stop in zip(starts, stops, strict=True)
        ]

    def reconsiders(self, number: int) -> bool:
        """Return True if a sparse forward decides after this tile whether to retain the next ones:
        after 1, 2, 4, 8 ... tiles only, because the decision waits for the device."""
        return self.sparse and self.retained_cost > 0 and number & (number + 1) == 0

    def worth_retaining(self, share: float) -> bool:
        """Return True if retaining a tile that `share` of the rows need in backward takes less time
        than recomputing it."""
        return share * self.size >= self.retained_cost


def make_plan(
    rows: int,
    vocabulary: int,
    size: int,
    dtype: torch.dtype,
    *,
    backend: str,
    device_type: str,
    workspace_bytes: int | None,
    softcap: float | None = None,
    tolerance: float = 0.0,
    tile_width: int | None = None,
) -> Plan:
    """Make the plan of a call on ``[N, D]`` rows and a ``[V, D]`` head; `rows` may be symbolic.

    workspace_bytes: upper limit of the workspace. None is 1 GiB, and 0 where a softcap applies to
    half-precision products, because its derivative magnifies their rounding. The plan takes no more
    than all tiles need, and 0 where the first does not fit; given the `workspace_bytes` of a plan,
    the same plan results. tile_width: None takes the backend's.
    """
    precision = precision_of(dtype)
    traits = backends.get(backend).traits(device_type)
    usual = traits.sparse_width if tolerance > 0.0 else traits.dense_width
    tiles = _tiles(vocabulary, usual if tile_width is None else tile_width)
    whole, last = _retained_bytes(backend, rows, tiles, precision)
    if workspace_bytes is None and softcap is not None and precision.retained.itemsize == 2:
        workspace_bytes = 0
    if workspace_bytes is None:
        workspace_bytes = DEFAULT_WORKSPACE_CAP
    budget = min(workspace_bytes, (len(tiles) - 1) * aligned(whole) + aligned(last))
    return Plan(
        backend=backend,
        rows=rows,
        vocabulary=vocabulary,
        size=size,
        tiles=tiles,
        workspace_bytes=budget if budget >= aligned(whole) else 0,
        precision=precision,
        tolerance=tolerance,
        retained_cost=traits.retained_cost,
    )


def aligned(nbytes: int) -> int:
    """Round up to the alignment of a slot."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _tiles(vocabulary: int, width: int) -> tuple[Tile, ...]:
    starts = range(0, vocabulary, width)
    return tuple([Tile(start, min(start + width, vocabulary)) for start in starts])


def _retained_bytes(
    backend: str, rows: int, tiles: tuple[Tile, ...], precision: Precision
) -> tuple[int, int]:
    """Return the bytes that a backend retains of every tile but the last, and of the last."""
    module, first, last = backends.get(backend), tiles[0], tiles[-1]
    whole = module.retained_bytes(rows, first.width, precision)
    if len(tiles) == 1:
        return whole, whole
    return whole, module.retained_bytes(rows, last.width, precision)
