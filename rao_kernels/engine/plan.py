"""How a pass is cut up: tile width, workspace, and the slots of the retained buffer.

Widths and sizes are functions of shapes, dtype, backend and device type, so that a compiler's fake
tensors agree with the real ones. Legend: N rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import backends
from ..backends import RetainedSlot, Tile, Traits

DEFAULT_WORKSPACE_CAP = 1 << 30
ALIGNMENT = 64
ZEROED_REST = 1 << 24  # bytes


def tile_width(vocabulary: int, traits: Traits, *, sparse: bool = False) -> int:
    """Words of a tile: fewer for a sparse backward, which drops more of them then."""
    return min(vocabulary, traits.sparse_width if sparse else traits.dense_width)


def tiles(vocabulary: int, traits: Traits, *, sparse: bool = False) -> list[Tile]:
    """The vocabulary, cut into tiles; the last may be narrower."""
    width = tile_width(vocabulary, traits, sparse=sparse)
    return [Tile(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def slot_bytes(backend: str, rows: int, tile: Tile, dtype: torch.dtype) -> int:
    """Bytes that one retained tile takes, up to where the next may begin."""
    return _aligned(backends.get(backend).retained_bytes(rows, tile.width, dtype))


def workspace_bytes(
    requested: int | None,
    rows: int,
    vocabulary: int,
    dtype: torch.dtype,
    backend: str,
    device_type: str,
    *,
    sparse: bool,
    bends: bool,
) -> int:
    """Size of the retained buffer: what was asked for, at most what all tiles take.

    None asks for everything, up to 1 GiB, and for nothing where a softcap bends half-precision
    products, because its derivative magnifies their rounding. Less than one tile counts as 0.
    """
    cut = tiles(vocabulary, backends.get(backend).traits(device_type), sparse=sparse)
    everything = sum(slot_bytes(backend, rows, tile, dtype) for tile in cut)
    if requested is None and bends and dtype.itemsize == 2:
        requested = 0
    if requested is None:
        requested = DEFAULT_WORKSPACE_CAP
    budget = min(requested, everything)
    return budget if budget >= slot_bytes(backend, rows, cut[0], dtype) else 0


def is_reconsidered(number: int, traits: Traits) -> bool:
    """Whether to ask after this tile if the next ones are worth retaining: after 1, 2, 4, 8 ..."""
    return traits.retained_cost > 0 and number & (number + 1) == 0


def worth_retaining(share: float, size: int, traits: Traits) -> bool:
    """Whether a tile that this share of the rows comes back to is better retained."""
    return share * size >= traits.retained_cost


@dataclass(frozen=True)
class RetainedBuffer:
    """The flat byte buffer that carries retained tiles from forward to backward.

    The first tiles that fit are retained. `rows` is the number of rows that were projected, which
    may be less than the buffer was sized for; more tiles fit then.
    """

    backend: str
    memory: Tensor
    rows: int
    dtype: torch.dtype

    def slots(self, cut: list[Tile]) -> list[RetainedSlot | None]:
        """For each tile the memory it is retained in, or None."""
        module = backends.get(self.backend)
        offset, found = 0, list[RetainedSlot | None]()
        for tile in cut:
            end = offset + module.retained_bytes(self.rows, tile.width, self.dtype)
            fits = self.rows > 0 and _aligned(end) <= self.memory.numel()
            found.append(RetainedSlot(self.memory[offset:end], self.rows) if fits else None)
            offset = _aligned(end)
        return found

    def zero_between(self, slots: list[RetainedSlot | None]) -> None:
        """Zero what lies between the slots before they are written, so that equal inputs give equal
        buffers."""
        offset = 0
        for slot in slots:
            if slot is None:
                break
            end = offset + slot.memory.numel()
            offset = _aligned(end)
            self.memory[end:offset].zero_()

    def zero_unused(self, slots: list[RetainedSlot | None]) -> None:
        """Zero what lies behind the slots that were used if it is short, to the same end. More
        stays uninitialised: fresh memory of a CPU costs nothing as long as nobody writes to it.
        """
        used = sum(_aligned(slot.memory.numel()) for slot in slots if slot is not None)
        if self.memory.numel() - used <= ZEROED_REST:
            self.memory[used:].zero_()
