"""The C++ backend of the CPU: packed products with fp32 sums, reduced while they are in cache.

Legend: N rows, V vocabulary, D hidden size, W entries of a tile.
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
# With AMX, writing and reading a retained logit takes the time of more multiply-adds. The packed
# weight of a wider tile would not stay in the L2 cache.
_AMX_TRAITS = Traits(dense_width=1024, sparse_width=1024, retained_cost=600)
_AMX_BLOCK = 32  # rows and entries of a retained block; each of its rows has one maximum
_SCRATCH = ("packed_weight", "packed_hidden", "rows", "threads")


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
    """Return what csrc's TileKernels::retained_bytes returns for the instruction set in use."""
    if _isa() != "avx512_amx":
        return grouped_bytes(rows, width, precision)
    blocks = -(-rows // _AMX_BLOCK) * -(-width // _AMX_BLOCK)
    values = _AMX_BLOCK * _AMX_BLOCK * precision.retained.itemsize
    return 64 + blocks * (values + _AMX_BLOCK * precision.accumulate.itemsize)


def scratch(head: Head, width: int, *, backward: bool) -> Sequence[Tensor]:
    """Return packed weight, packed hidden, per-row memory and per-thread memory.

    With ``itemsize`` 2 where bf16 is multiplied as such and 4 otherwise, and W (forward) or D
    (backward) rounded up to a panel of at most 64 columns, the bytes are::

        packed weight   W * D * itemsize
        packed hidden   N * D * itemsize (backward)
        rows            N * W / 256 * 20 (forward: statistics), N * W * itemsize (backward: dz)
        threads         at most about 0.6 MB each, while D is below 16384; AMX: 4.6 MB

    AMX with bf16 packs no weight in forward, and hidden in both passes, twice in backward.
    """
    isa, threads = _isa_number(), torch.get_num_threads()  # the first call loads the library
    sizes = _operators().scratch_sizes(isa, head.hidden, width, backward)
    *shared, thread = sizes

    def buffer(*shape: int) -> Tensor:
        return _memory.empty(shape, torch.uint8, head.hidden.device)

    return (*map(buffer, shared), buffer(threads, thread))


def begin(head: Head, scratch: Sequence[Tensor], *, backward: bool) -> None:
    _, packed_hidden, _, threads = scratch
    _native.call(
        _operators().pack_hidden,
        isa=_isa_number(),
        hidden=head.hidden,
        backward=backward,
        packed_hidden=packed_hidden,
        threads=threads,
    )


def score_tile(
    head: Head,
    tile: Tile,
    state: RowState,
    retained: RetainedSlot | None,
    scratch: Sequence[Tensor],
    first: bool,
) -> None:
    if first:
        state.reset()
    _native.call(
        _operators().score_tile,
        **_head_arguments(head, tile),
        **vars(state),
        **_retained_arguments(retained),
        **_scratch_arguments(scratch),
    )


def grad_tile(
    head: Head,
    tile: Tile,
    rows: RowGradients,
    retained: RetainedSlot | None,
    out: Gradients,
    scratch: Sequence[Tensor],
) -> None:
    _native.call(
        _operators().grad_tile,
        **_head_arguments(head, tile),
        **vars(rows),
        **_retained_arguments(retained),
        dhidden=out.dhidden,
        dhidden_rows=out.dhidden_row,
        dweight=_written(out.dweight, tile),
        dweight_rows=tile.entries,
        dbias=_written(out.dbias, tile),
        unscale=out.unscale,
        **_scratch_arguments(scratch),
    )


def _operators() -> Any:
    return torch.ops.rao_native


def _isa() -> str:
    """Return the name of the instruction set in use."""
    library = _native.cpu_library()
    assert isinstance(library, _native.CpuLibrary)
    return library.isa


def _isa_number() -> int:
    return _native.ISAS.index(_isa())


def _head_arguments(head: Head, tile: Tile) -> dict[str, object]:
    usable = head.weight.dtype == head.hidden.dtype and head.weight.is_contiguous()
    in_place = usable and tile.entries is not None
    return {
        "isa": _isa_number(),
        "hidden": head.hidden,
        "weight": head.weight if in_place else head.weight_tile(tile),
        "weight_rows": tile.entries if in_place else None,
        "bias": head.bias_tile(tile),
        "targets": head.targets,
        "first_entry": tile.start,
        "scale": head.scale,
        "softcap": head.softcap or 0.0,
    }


def _written(table: Tensor | None, tile: Tile) -> Tensor | None:
    """Return the tile's rows, or all rows where the kernel is given the tile's `entries`."""
    return table if table is None or tile.entries is not None else table[tile.start : tile.stop]


def _retained_arguments(retained: RetainedSlot | None) -> dict[str, object]:
    if retained is None:
        return {"retained": None, "retained_rows": 0}
    return {"retained": retained.memory, "retained_rows": retained.rows}


def _scratch_arguments(scratch: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(_SCRATCH, scratch, strict=True))
