"""grad_tile in Triton: dz from the vendor's products or retained logits, or in one kernel.

The two matrix products of dz are the vendor's.
Legend: N rows, W entries of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..tiles import Head, RetainedTile, RowGradients, Tile
from . import tuning
from .blocks import (
    BLOCK_V,
    block_position,
    cut,
    launch,
    logit_gradient,
    narrowed,
    position_in_tile,
    product,
    row_gradients,
    slope_at,
    transform,
)
from .score_tile_kernels import product_constants, product_operands, retained_arguments


def from_products(head: Head, tile: Tile, raw: Tensor, rows: RowGradients, dz: Tensor) -> None:
    """Write ``dz [N, W]``, the gradient of ``raw [N, W]``. A program per row and chunk of it."""
    _by_rows(head, tile, (raw, raw.stride(0), None, None, None), rows, dz)


def from_retained(
    head: Head, tile: Tile, retained: RetainedTile, rows: RowGradients, dz: Tensor
) -> None:
    """`from_products`, from the logits of a retained tile."""
    _by_rows(head, tile, (None, None, *retained_arguments(retained)), rows, dz)


def fused(head: Head, tile: Tile, weight: Tensor, rows: RowGradients, dz: Tensor) -> None:
    """`from_products`, with the products computed in the same kernel and not written to memory.

    weight: ``[W, D]``, the tile's.
    """
    config = tuning.grad_launch(head)
    launch(
        _grad_tile_fused_kernel,
        config.programs(head.rows, tile.width),
        weight.device,
        *product_operands(head, weight, config),
        head.bias_tile(tile),
        head.targets,
        *_row_arguments(rows),
        dz,
        dz.stride(0),
        head.rows,
        tile.start,
        tile.width,
        head.hidden.shape[1],
        head.scale,
        head.softcap,
        **product_constants(head, weight, config),
        warps=config.warps,
        stages=config.stages,
    )


def _by_rows(
    head: Head,
    tile: Tile,
    source: tuple[Tensor | int | None, ...],
    rows: RowGradients,
    dz: Tensor,
) -> None:
    config = tuning.grad_rows_launch(dz.device, tile.width)
    launch(
        _grad_tile_rows_kernel,
        head.rows * config.chunks,
        dz.device,
        *source,
        rows.retained_row,
        head.bias_tile(tile),
        head.targets,
        *_row_arguments(rows),
        dz,
        dz.stride(0),
        tile.start,
        tile.width,
        head.scale,
        head.softcap,
        GROUPS=config.groups,
        warps=config.warps,
    )


def _row_arguments(rows: RowGradients) -> tuple[Tensor | None, ...]:
    return (
        rows.row_max,
        rows.log_sum,
        rows.logp,
        rows.logp_grad,
        rows.p_factor,
        rows.p_log_p_factor,
    )


@triton.jit(do_not_specialize=["retained_rows", "start"])
def _grad_tile_rows_kernel(
    raw_ptr,
    stride_n,
    values_ptr,
    maxima_ptr,
    retained_rows,
    retained_row_ptr,
    bias_ptr,
    targets_ptr,
    row_max_ptr,
    log_sum_ptr,
    logp_ptr,
    logp_grad_ptr,
    p_factor_ptr,
    p_log_p_factor_ptr,
    dz_ptr,
    stride_dn,
    start,
    W,
    scale,
    softcap,
    GROUPS: tl.constexpr,
):
    chunks = tl.cdiv(W, GROUPS * BLOCK_V)
    n = (tl.program_id(0) // chunks).to(tl.int64)
    of_row = row_gradients(
        n,
        True,
        scale,
        row_max_ptr,
        log_sum_ptr,
        logp_ptr,
        logp_grad_ptr,
        p_factor_ptr,
        p_log_p_factor_ptr,
    )
    target = position_in_tile(targets_ptr, n, True, start, W)
    group = (tl.program_id(0) % chunks) * GROUPS + tl.arange(0, GROUPS)[:, None]
    lane = tl.arange(0, BLOCK_V)[None, :]
    entries = group * BLOCK_V + lane
    inside = entries < W
    if values_ptr is None:
        raw = tl.load(raw_ptr + n * stride_n + entries, mask=inside, other=0.0)
        z, slope = transform(raw, bias_ptr, entries, inside, scale, softcap)
    else:
        there = group < tl.cdiv(W, BLOCK_V)
        row = n
        if retained_row_ptr is not None:
            row = tl.load(retained_row_ptr + n)
        index = group.to(tl.int64) * retained_rows + row
        z = tl.load(values_ptr + index * BLOCK_V + lane, mask=there, other=0.0).to(tl.float32)
        z += tl.load(maxima_ptr + index, mask=there, other=0.0)
        target_logit = tl.load(logp_ptr + n) + (of_row[0] + of_row[1])
        slope = slope_at(tl.where(entries == target, target_logit, z), scale, softcap)
    dz = logit_gradient(z, entries == target, of_row, p_factor_ptr is not None)
    draw = narrowed(dz * slope, dz_ptr.dtype.element_ty)
    tl.store(dz_ptr + n * stride_dn + entries, draw, mask=inside)


@triton.jit(do_not_specialize=["N", "start"])
def _grad_tile_fused_kernel(
    hidden,
    weight,
    bias_ptr,
    targets_ptr,
    row_max_ptr,
    log_sum_ptr,
    logp_ptr,
    logp_grad_ptr,
    p_factor_ptr,
    p_log_p_factor_ptr,
    dz_ptr,
    stride_dn,
    N,
    start,
    W,
    D,
    scale,
    softcap,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROW_BLOCKS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN: tl.constexpr,
    RAGGED: tl.constexpr,
    PARTS: tl.constexpr,
):
    blocks = tl.cdiv(N, BLOCK_N) * tl.cdiv(W, BLOCK_V)
    for number in range(tl.program_id(0), blocks, tl.num_programs(0)):
        first_row, group = block_position(number, N, W, BLOCK_N, ROW_BLOCKS)
        first_entry = group * BLOCK_V
        raw = product(
            hidden, weight, first_row, first_entry, N, W, D, BLOCK_N, BLOCK_D, DESCRIPTORS, EVEN
        )
        rows = (first_row + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
        row_inside = rows < N
        of_row = row_gradients(
            rows,
            row_inside,
            scale,
            row_max_ptr,
            log_sum_ptr,
            logp_ptr,
            logp_grad_ptr,
            p_factor_ptr,
            p_log_p_factor_ptr,
        )
        target = position_in_tile(targets_ptr, rows, row_inside, start, W)
        parts = cut(raw, PARTS)
        for i in tl.static_range(PARTS):
            entries = first_entry + i * (BLOCK_V // PARTS) + tl.arange(0, BLOCK_V // PARTS)[None, :]
            inside = entries < W if RAGGED else None
            there = row_inside & inside if RAGGED else row_inside
            z, slope = transform(parts[i], bias_ptr, entries, inside, scale, softcap)
            dz = logit_gradient(z, target == entries, of_row, p_factor_ptr is not None)
            draw = narrowed(dz * slope, dz_ptr.dtype.element_ty)
            tl.store(dz_ptr + rows * stride_dn + entries, draw, mask=there)
