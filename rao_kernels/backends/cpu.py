"""The C++ backend of the CPU: packed products with fp32 sums, statistics while they are in cache.

Legend: N rows, V vocabulary, D hidden size, W words of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _memory, _native
from .tiles import (
    Gradients,
    Head,
    Precision,
    RetainedSlot,
    RowGradients,
    RowState,
    Tile,
    Traits,
    grouped_bytes,
)

NAME = "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TRAITS = Traits(dense_width=2048, sparse_width=1024, retained_cost=300)
# The tile unit multiplies more in the time of a retained logit; the packed weight of wider tiles
# leaves the second-level cache.
_AMX_TRAITS = Traits(dense_width=1024, sparse_width=1024, retained_cost=600)
_AMX_BLOCK = 32  # rows and words of a retained block, which shares maxima


def supports(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"it runs on a CPU, not on {device.type}"
    if dtype not in DTYPES:
        return f"it computes in {DTYPES}, not {dtype}"
    library = _native.cpu_library()
    return library.reason if isinstance(library, _native.Missing) else None


def traits(device_type: str) -> Traits:
    return _AMX_TRAITS if _isa() == "avx512_amx" else _TRAITS


def retained_bytes(rows: int, width: int, precision: Precision) -> int:
    """As csrc's TileKernels::retained_bytes of the instruction set in use."""
    if _isa() != "avx512_amx":
        return grouped_bytes(rows, width, precision)
    blocks = -(-rows // _AMX_BLOCK) * -(-width // _AMX_BLOCK)
    values = _AMX_BLOCK * _AMX_BLOCK * precision.retained.itemsize
    return 64 + blocks * (values + _AMX_BLOCK * precision.accumulate.itemsize)


def scratch(head: Head, width: int, *, backward: bool) -> Sequence[Tensor]:
    """Packed weight, packed hidden, per-row memory, per-thread memory.

    With ``itemsize`` 2 where bf16 is multiplied as such and 4 otherwise, and D rounded up to a
    panel of 64 words or fewer, the bytes are::

        packed weight   W * D * itemsize
        packed hidden   N * D * itemsize (backward)
        rows            N * W / 256 * 20 (forward: statistics), N * W * itemsize (backward: dz)
        threads         at most about 0.6 MB each, while D is below 16384; AMX: 4.6 MB
    """
    isa, threads = _isa_number(), torch.get_num_threads()  # the first call loads the library
    sizes = _operators().scratch_sizes(isa, head.hidden, width, backward)
    *shared, thread = sizes

    def buffer(*shape: int) -> Tensor:
        return _memory.empty(shape, torch.uint8, head.hidden.device)

    return (*map(buffer, shared), buffer(threads, thread))


def begin(head: Head, scratch: Sequence[Tensor], *, backward: bool) -> None:
    _, packed_hidden, _, threads = scratch
    _operators().pack_hidden(_isa_number(), head.hidden, backward, packed_hidden, threads)


def score_tile(
    head: Head,
    tile: Tile,
    state: RowState,
    retained: RetainedSlot | None,
    scratch: Sequence[Tensor],
) -> None:
    _operators().score_tile(
        *_head_arguments(head, tile),
        state.row_max,
        state.row_sum,
        state.target_logit,
        state.entropy_sum,
        state.square_sum,
        state.logit_sum,
        *_retained_arguments(retained),
        *scratch,
    )


def grad_tile(
    head: Head,
    tile: Tile,
    rows: RowGradients,
    retained: RetainedSlot | None,
    out: Gradients,
    scratch: Sequence[Tensor],
) -> None:
    _operators().grad_tile(
        *_head_arguments(head, tile),
        rows.row_max,
        rows.log_sum,
        rows.logp,
        rows.logp_grad,
        rows.mass_grad,
        rows.log_mass_grad,
        rows.retained_row,
        *_retained_arguments(retained),
        out.dhidden,
        out.dhidden_row,
        _written(out.dweight, tile),
        tile.words,
        _written(out.dbias, tile),
        out.unscale,
        *scratch,
    )


def _operators() -> Any:
    return torch.ops.rao_native


def _isa() -> str:
    """The instruction set in use."""
    library = _native.cpu_library()
    assert isinstance(library, _native.CpuLibrary)
    return library.isa


def _isa_number() -> int:
    return _native.ISAS.index(_isa())


def _head_arguments(head: Head, tile: Tile) -> tuple[object, ...]:
    usable = head.weight.dtype == head.hidden.dtype and head.weight.is_contiguous()
    in_place = usable and tile.words is not None
    return (
        _isa_number(),
        head.hidden,
        head.weight if in_place else head.weight_tile(tile),
        tile.words if in_place else None,
        head.bias_tile(tile),
        head.targets,
        tile.start,
        head.scale,
        head.softcap or 0.0,
    )


def _written(table: Tensor | None, tile: Tile) -> Tensor | None:
    """What the kernel writes a tile's rows to: all rows where it is given their places."""
    return table if table is None or tile.words is not None else table[tile.start : tile.stop]


def _retained_arguments(retained: RetainedSlot | None) -> tuple[Tensor | None, int]:
    return (None, 0) if retained is None else (retained.memory, retained.rows)
