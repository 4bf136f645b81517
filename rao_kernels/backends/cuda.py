"""The CUDA C++ backend: the vendor's matrix products, and a row kernel over each tile of them.

The row kernels are compiled when the package is built, none at run time.
Legend: N rows, W entries of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from .. import _native
from . import products
from .tiles import (
    GPU_WORKSPACE_CAP,
    Gradients,
    Head,
    Precision,
    RetainedSlot,
    RetainedTile,
    RowGradients,
    RowState,
    Tile,
    Traits,
    grouped_bytes,
)

NAME = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDEST = 1 << 20
_PADDING = 64  # entries: rows begin on a cache line


def supports(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda" or torch.version.cuda is None:
        return f"it runs on an NVIDIA GPU, not on {device.type}"
    if dtype not in DTYPES:
        return f"it computes in {DTYPES}, not {dtype}"
    library = _native.cuda_library()
    if isinstance(library, _native.Missing):
        return library.reason
    index = torch.cuda.current_device() if device.index is None else device.index
    if problem := _native.cuda_problem(index):
        name = torch.cuda.get_device_name(index)
        built = ", ".join(library.capabilities)
        return f"its kernels, built for compute capability {built}, do not run on {name}: {problem}"
    return None


def traits(device_type: str) -> Traits:
    """Return the traits of the products; a row kernel takes a row of any width, part by part."""
    found = products.traits_on(device_type)
    if device_type != "cuda":
        return found
    return replace(found, widest=_WIDEST, writes_dhidden=True, workspace_cap=GPU_WORKSPACE_CAP)


def retained_bytes(rows: int, width: int, precision: Precision) -> int:
    return grouped_bytes(rows, width, precision)


def scratch(head: Head, width: int, *, backward: bool) -> Sequence[Tensor]:
    """Return none: torch's allocator reuses the previous tile's memory.

    A tile takes ``4 N W`` bytes in forward, and ``N W itemsize`` in backward, plus ``4 N W`` where
    it is recomputed.
    """
    return ()


def begin(head: Head, scratch: Sequence[Tensor], *, backward: bool) -> None:
    return None


def score_tile(
    head: Head,
    tile: Tile,
    state: RowState,
    retained: RetainedSlot | None,
    scratch: Sequence[Tensor],
    first: bool,
) -> None:
    raw = _padded(head, tile, head.accumulator)
    products.logits(head, tile, out=raw[:, : tile.width])
    with _current_stream(head.hidden.device) as stream:
        _native.call(
            torch.ops.rao_native.score_rows,
            products=raw,
            **_tile_arguments(head, tile),
            **vars(state),
            first=first,
            **_retained_arguments(head, tile, retained),
            stream=stream,
        )


def grad_tile(
    head: Head,
    tile: Tile,
    rows: RowGradients,
    retained: RetainedSlot | None,
    out: Gradients,
    scratch: Sequence[Tensor],
) -> None:
    weight = products.weight_of_gradients(head, tile, retained, out)
    dz = _product_gradient(head, tile, rows, retained, weight)
    products.add_products(head, tile, dz[:, : tile.width], out, weight)


def _product_gradient(
    head: Head,
    tile: Tile,
    rows: RowGradients,
    retained: RetainedSlot | None,
    weight: Tensor | None,
) -> Tensor:
    """Return dz ``[N, W]``, padded, in `Precision.dz`; never in the memory of the retained tile."""
    raw = None
    if retained is None:
        raw = _padded(head, tile, head.accumulator)
        products.logits(head, tile, raw[:, : tile.width], weight)
    dz = _padded(head, tile, head.precision.dz)
    with _current_stream(head.hidden.device) as stream:
        _native.call(
            torch.ops.rao_native.grad_rows,
            products=raw,
            **_retained_arguments(head, tile, retained),
            **_tile_arguments(head, tile),
            **vars(rows),
            dz=dz,
            stream=stream,
        )
    return dz


def _padded(head: Head, tile: Tile, dtype: torch.dtype) -> Tensor:
    """Return uninitialised ``[N, W]``, its rows padded to whole cache lines."""
    width = -(-tile.width // _PADDING) * _PADDING
    return torch.empty(head.rows, width, dtype=dtype, device=head.hidden.device)


@contextmanager
def _current_stream(device: torch.device) -> Iterator[int]:
    """Yield the handle of torch's current stream of `device`, which is current in the block."""
    with torch.cuda.device(device):
        yield torch.cuda.current_stream().cuda_stream


def _tile_arguments(head: Head, tile: Tile) -> dict[str, object]:
    return {
        "bias": head.bias_tile(tile),
        "targets": head.targets,
        "first_entry": tile.start,
        "entries": tile.width,
        "scale": head.scale,
        "softcap": head.softcap or 0.0,
    }


def _retained_arguments(
    head: Head, tile: Tile, retained: RetainedSlot | None
) -> dict[str, Tensor | None]:
    if retained is None:
        return {"values": None, "maxima": None}
    kept = RetainedTile.on(retained, tile, head.precision)
    return {"values": kept.values, "maxima": kept.maxima}
