"""The Triton backend: the vendor's products followed by a row kernel, or one fused kernel.

Importing it does not import triton: the kernels' modules load when a tile operation first runs.
Legend: N rows, W entries of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from ..products import add_products, logits, traits_on, weight_of_gradients
from ..tiles import (
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
from . import tuning

NAME = "triton"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)
_WIDEST = 1 << 20


def supports(device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype not in DTYPES:
        return f"it computes in {DTYPES}, not {dtype}"
    if not _installed():
        return "triton is not installed; `pip install triton` installs it"
    if device.type == "cpu" and _interpreting():
        return None
    if device.type != "cuda":
        return f"it runs on CUDA, not on {device.type} (except under TRITON_INTERPRET=1)"
    target = tuning.target_of(device)
    if not target.is_amd and target.capability < LEAST_CAPABILITY:
        least, has = (f"{major}.{minor}" for major, minor in (LEAST_CAPABILITY, target.capability))
        return f"it needs compute capability {least}, {target.name} has {has}"
    return None


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


@cache
def _interpreting() -> bool:
    """Return True if Triton interprets kernels on the CPU (TRITON_INTERPRET=1)."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


def traits(device_type: str) -> Traits:
    """Return the traits of the products; a row kernel takes a row of any width, chunk by chunk."""
    found = traits_on(device_type)
    if device_type != "cuda":
        return found
    return replace(found, widest=_WIDEST, writes_dhidden=True, workspace_cap=GPU_WORKSPACE_CAP)


def retained_bytes(rows: int, width: int, precision: Precision) -> int:
    return grouped_bytes(rows, width, precision)


def scratch(head: Head, width: int, *, backward: bool) -> Sequence[Tensor]:
    """Return memory for a tile's products or groups' statistics (forward), or dz (backward)."""
    from . import blocks
    from . import score_tile_kernels as kernels

    if not backward and _is_fused("score", head):
        return (kernels.partial_statistics(head, width),)
    dtype = head.precision.dz if backward else head.precision.accumulate
    shape = (head.rows, blocks.padded(width))
    return (torch.empty(shape, dtype=dtype, device=head.hidden.device),)


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
    from . import score_tile_kernels as kernels

    kept = None if retained is None else RetainedTile.on(retained, tile, head.precision)
    if _is_fused("score", head):
        kernels.fused(head, tile, scratch[0], state, kept, first)
    else:
        raw = logits(head, tile, out=scratch[0][: head.rows, : tile.width])
        kernels.from_products(head, tile, raw, state, kept, first)


def grad_tile(
    head: Head,
    tile: Tile,
    rows: RowGradients,
    retained: RetainedSlot | None,
    out: Gradients,
    scratch: Sequence[Tensor],
) -> None:
    from . import grad_tile_kernels as kernels

    dz = scratch[0][: head.rows, : tile.width]
    weight = weight_of_gradients(head, tile, retained, out)
    if retained is not None:
        kept = RetainedTile.on(retained, tile, head.precision)
        kernels.from_retained(head, tile, kept, rows, dz)
    elif _is_fused("grad", head):
        assert weight is not None
        kernels.fused(head, tile, weight, rows, dz)
    else:
        kernels.from_products(head, tile, logits(head, tile, weight=weight), rows, dz)
    add_products(head, tile, dz, out, weight)


def _is_fused(what: tuning.Pass, head: Head) -> bool:
    """Return True where products and statistics, or gradients, are one kernel.

    With a bias or softcap the statistics leave registers for small blocks of products only, whose
    operands would be read too often.
    """
    if what == "score" and (head.bias is not None or head.softcap is not None):
        return False
    return tuning.is_fused(what, head.hidden.device, head.hidden.dtype, head.hidden.shape[1])
