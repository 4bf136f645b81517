"""How a pass is cut up: tile width, workspace, and the slots of the retained buffer.

Widths and sizes are functions of shapes, dtype and device type, so that a compiler's fake tensors
agree with the real ones. Legend: N rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import GROUP, RetainedTile, Tile

DEFAULT_WORKSPACE_CAP = 1 << 30
ALIGNMENT = 64
ZEROED_REST = 1 << 24  # bytes
_DENSE_WIDTH = {"cpu": 2048, "cuda": 8192}
_SPARSE_WIDTH = {"cpu": 1024, "cuda": 4096}
# A CPU writes and reads a retained logit in the time of so many multiply-adds; elsewhere in none.
_RETAINED_COST = {"cpu": 300}


def tile_width(vocabulary: int, device_type: str, *, sparse: bool = False) -> int:
    """Words of a tile: fewer for a sparse backward, which drops more of them then."""
    widths = _SPARSE_WIDTH if sparse else _DENSE_WIDTH
    return min(vocabulary, widths.get(device_type, 4096))


def tiles(vocabulary: int, device_type: str, *, sparse: bool = False) -> list[Tile]:
    """The vocabulary, cut into tiles; the last may be narrower."""
    width = tile_width(vocabulary, device_type, sparse=sparse)
    return [Tile(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _accumulator_size(dtype: torch.dtype) -> int:
    return 8 if dtype == torch.float64 else 4


def slot_bytes(rows: int, tile: Tile, dtype: torch.dtype) -> int:
    """Bytes that one retained tile takes: its values, then its group maxima."""
    values = _aligned(rows * tile.groups * GROUP * dtype.itemsize)
    return values + _aligned(rows * tile.groups * _accumulator_size(dtype))


def workspace_bytes(
    requested: int | None,
    rows: int,
    vocabulary: int,
    dtype: torch.dtype,
    device_type: str,
    *,
    sparse: bool,
    bends: bool,
) -> int:
    """Size of the retained buffer: what was asked for, at most what all tiles take.

    None asks for everything, up to 1 GiB, and for nothing where a softcap bends half-precision
    products, because its derivative magnifies their rounding. Less than one tile counts as 0.
    """
    cut = tiles(vocabulary, device_type, sparse=sparse)
    everything = sum(slot_bytes(rows, tile, dtype) for tile in cut)
    if requested is None and bends and dtype.itemsize == 2:
        requested = 0
    if requested is None:
        requested = DEFAULT_WORKSPACE_CAP
    budget = min(requested, everything)
    return budget if budget >= slot_bytes(rows, cut[0], dtype) else 0


def is_reconsidered(number: int, device_type: str) -> bool:
    """Whether to ask after this tile if the next ones are worth retaining: after 1, 2, 4, 8 ..."""
    return device_type in _RETAINED_COST and number & (number + 1) == 0


def worth_retaining(share: float, size: int, device_type: str) -> bool:
    """Whether a tile that this share of the rows comes back to is better retained."""
    return share * size >= _RETAINED_COST.get(device_type, 0)


@dataclass(frozen=True)
class RetainedBuffer:
    """The flat byte buffer that carries retained tiles from forward to backward.

    The first tiles that fit are retained. `rows` is the number of rows that were projected, which
    may be less than the buffer was sized for; more tiles fit then.
    """

    memory: Tensor
    rows: int
    dtype: torch.dtype

    def slots(self, cut: list[Tile]) -> list[RetainedTile | None]:
        """For each tile the memory it is retained in, or None."""
        offset, found = 0, list[RetainedTile | None]()
        for tile in cut:
            end = offset + slot_bytes(self.rows, tile, self.dtype)
            fits = self.rows > 0 and end <= self.memory.numel()
            found.append(self._slot(offset, tile) if fits else None)
            offset = end
        return found

    def zero_unused(self, cut: list[Tile], slots: list[RetainedTile | None]) -> None:
        """Zero what lies between the first tiles, retained in `slots`, and the rest if it is short,
        so that equal inputs give equal buffers. A long rest stays untouched: it costs no memory
        on a CPU as long as nobody writes to it.
        """
        used = 0
        for tile, slot in zip(cut, slots, strict=True):
            if slot is None:
                break
            maxima = used + _aligned(slot.values.nbytes)
            self.memory[used + slot.values.nbytes : maxima].zero_()
            used += slot_bytes(self.rows, tile, self.dtype)
            self.memory[maxima + slot.maxima.nbytes : used].zero_()
        if self.memory.numel() - used <= ZEROED_REST:
            self.memory[used:].zero_()

    def _slot(self, offset: int, tile: Tile) -> RetainedTile:
        accumulator = torch.float64 if self.dtype == torch.float64 else torch.float32
        shape = (tile.groups, self.rows, GROUP)
        count = math.prod(shape)
        values = self.memory[offset : offset + count * self.dtype.itemsize].view(self.dtype)
        offset += _aligned(count * self.dtype.itemsize)
        count = math.prod(shape[:2])
        maxima = self.memory[offset : offset + count * accumulator.itemsize].view(accumulator)
        return RetainedTile(values.view(shape), maxima.view(shape[:2]))
