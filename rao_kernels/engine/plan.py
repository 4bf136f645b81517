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
from ..backends import Precision, Tile, Traits, precision_of

LEAST_WORKSPACE_CAP = 1 << 30  # bytes
WIDENED_LOGITS = 1 << 26  # of a widened tile at most: 256 MiB in fp32
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
    single_tile: backward's only tile writes dhidden in its final dtype.
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
    single_tile: bool

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
    tolerance: float = 0.0,
    tile_width: int | None = None,
    weight_dtype: torch.dtype | None = None,
) -> Plan:
    """Make the plan of a call on ``[N, D]`` rows and a ``[V, D]`` head; `rows` may be symbolic.

    workspace_bytes: upper limit of the workspace. None is the limit of the backend and the shapes
    (docs/memory.md). The plan takes no more than all tiles need, and 0 where
    the first does not fit; given the `workspace_bytes` of a plan, the same plan results.
    tile_width: None takes the backend's. weight_dtype: None is `dtype`, that of the products.
    """
    precision = precision_of(dtype)
    traits = backends.get(backend).traits(device_type)
    if tile_width is None:
        in_place = dtype != torch.float16 and weight_dtype in (None, dtype)
        tile_width = traits.sparse_width
        if tolerance == 0.0:
            tile_width = _dense_width(traits, rows, vocabulary, in_place)
    tiles = _tiles(vocabulary, tile_width)
    whole, last = _retained_bytes(backend, rows, tiles, precision)
    if workspace_bytes is None:
        workspace_bytes = _default_workspace(traits, rows, vocabulary, size, dtype)
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
        # The gradients of fp16 are scaled back after the last tile.
        single_tile=traits.writes_dhidden
        and len(tiles) == 1
        and tolerance == 0.0
        and dtype != torch.float16,
    )


def aligned(nbytes: int) -> int:
    """Round up to the alignment of a slot."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _dense_width(traits: Traits, rows: int, vocabulary: int, in_place: bool) -> int:
    """Return the width of dense tiles: the backend's, doubled while few rows leave tiles small.

    Doubling leaves an int where `rows` is symbolic: a compiled graph holds for all numbers of rows
    of that width. in_place: products read the weight and write its gradient where they are. A copy
    of a tile, needed otherwise, would be a copy of much of the weight.
    """
    width, widest = traits.dense_width, min(vocabulary, traits.widest) if in_place else 0
    while width < widest and 0 < 2 * width * rows <= WIDENED_LOGITS:
        width *= 2
    return width


def _default_workspace(
    traits: Traits, rows: int, vocabulary: int, size: int, dtype: torch.dtype
) -> int:
    """Return the bytes that a call may retain of its own accord.

    As many as hidden, the weight and their gradients take, so that small models keep little; at
    least 1 GiB and at most the backend's limit.
    """
    if traits.workspace_cap <= LEAST_WORKSPACE_CAP:
        return traits.workspace_cap
    operands = 2 * (rows + vocabulary) * size * dtype.itemsize
    return min(max(operands, LEAST_WORKSPACE_CAP), traits.workspace_cap)


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
