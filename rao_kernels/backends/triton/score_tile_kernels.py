"""score_tile in Triton: from the vendor's products, or as one kernel that does not write products.

Legend: N rows, W entries of a tile, D hidden size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tiles import Head, RetainedTile, RowState, Tile
from . import tuning
from .blocks import (
    BLOCK_V,
    STATISTICS,
    block_position,
    cut,
    describable,
    descriptor,
    fold,
    launch,
    merged,
    merged_groups,
    narrowed,
    padded,
    position_in_tile,
    product,
    shift_of,
    statistics_of,
    transform,
)


def from_products(
    head: Head,
    tile: Tile,
    raw: Tensor,
    state: RowState,
    retained: RetainedTile | None,
    first: bool,
) -> None:
    """Merge ``raw [N, W]`` into `state`; fill `retained` if given. One program per row.

    raw: in the memory of `scratch`, whose rows are whole groups: the last one is loaded whole too.
    """
    assert raw.stride(0) >= padded(tile.width)
    rows = tuning.score_rows_launch(raw.device, head.rows, tile.width)
    launch(
        _score_tile_rows_kernel,
        head.rows,
        raw.device,
        raw,
        head.bias_tile(tile),
        head.targets,
        *_state_arguments(state),
        *retained_arguments(retained),
        raw.stride(0),
        int(first),
        tile.start,
        tile.width,
        head.scale,
        head.softcap,
        GROUPS=rows.groups,
        warps=rows.warps,
    )


def partial_statistics(head: Head, width: int) -> Tensor:
    """Return scratch for `fused`: ``[STATISTICS, groups of a tile, N]`` fp32."""
    shape = (STATISTICS, tuning.groups(width), head.rows)
    return torch.empty(shape, dtype=torch.float32, device=head.hidden.device)


def fused(
    head: Head,
    tile: Tile,
    partials: Tensor,
    state: RowState,
    retained: RetainedTile | None,
    first: bool,
) -> None:
    """Like `from_products`, with the products computed in the same kernel; no bias, no softcap.

    Each block's statistics are written to `partials`; a second kernel merges them.
    """
    assert head.bias is None and head.softcap is None
    weight = head.weight_tile(tile)
    config = tuning.score_launch(head, state)
    launch(
        _score_tile_fused_kernel,
        config.programs(head.rows, tile.width),
        weight.device,
        *product_operands(head, weight, config),
        head.targets,
        partials,
        state.target_logit,
        *retained_arguments(retained),
        head.rows,
        tile.start,
        tile.width,
        head.hidden.shape[1],
        head.scale,
        **product_constants(head, weight, config),
        WITH_ENTROPY_SUM=state.entropy_sum is not None,
        WITH_SUM_SQ_PROBS=state.sum_sq_probs is not None,
        WITH_LOGIT_SUM=state.logit_sum is not None,
        warps=config.warps,
        stages=config.stages,
    )
    merge = tuning.merge_launch(tile.width)
    launch(
        _score_tile_merge_kernel,
        triton.cdiv(head.rows, merge.rows),
        weight.device,
        partials,
        head.targets,
        *_state_arguments(state),
        head.rows,
        tile.groups,
        int(first),
        tile.start,
        tile.width,
        BLOCK_N=merge.rows,
        GROUPS=merge.groups,
        warps=merge.warps,
    )


def product_operands(
    head: Head, weight: Tensor, config: tuning.ProductLaunch
) -> tuple[object, object]:
    """Return `hidden` and `weight` as the kernel takes them: descriptors or tensors."""
    if not _by_descriptor(head, weight, config):
        return head.hidden, weight
    return (
        descriptor(head.hidden, config.block_rows, config.block_size),
        descriptor(weight, BLOCK_V.value, config.block_size),
    )


def product_constants(
    head: Head, weight: Tensor, config: tuning.ProductLaunch
) -> dict[str, int | bool]:
    return {
        "BLOCK_N": config.block_rows,
        "BLOCK_D": config.block_size,
        "ROW_BLOCKS": config.row_blocks,
        "DESCRIPTORS": _by_descriptor(head, weight, config),
        "EVEN": head.hidden.shape[1] % config.block_size == 0,
        "PARTS": config.parts,
        "RAGGED": weight.shape[0] % BLOCK_V.value != 0,
    }


def _by_descriptor(head: Head, weight: Tensor, config: tuning.ProductLaunch) -> bool:
    return config.descriptors and describable(head.hidden) and describable(weight)


def _state_arguments(state: RowState) -> tuple[Tensor | None, ...]:
    return (
        state.row_max,
        state.row_sum,
        state.entropy_sum,
        state.sum_sq_probs,
        state.logit_sum,
        state.target_logit,
    )


def retained_arguments(
    retained: RetainedTile | None,
) -> tuple[Tensor | None, Tensor | None, int | None]:
    """Return the tile's tensors and its number of rows, or Nones."""
    if retained is None:
        return None, None, None
    return retained.values, retained.maxima, retained.maxima.shape[1]


@triton.jit(do_not_specialize=["retained_rows", "is_first", "start"])
def _score_tile_rows_kernel(
    raw_ptr,
    bias_ptr,
    targets_ptr,
    row_max_ptr,
    row_sum_ptr,
    entropy_sum_ptr,
    sum_sq_probs_ptr,
    logit_sum_ptr,
    target_logit_ptr,
    values_ptr,
    maxima_ptr,
    retained_rows,
    stride_n,
    is_first,
    start,
    W,
    scale,
    softcap,
    GROUPS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    row_ptr = raw_ptr + n * stride_n
    # Loaded first, so that their latency is not added at the end.
    target = position_in_tile(targets_ptr, n, True, start, W)
    hit = target >= 0
    target_raw = tl.load(row_ptr + target, mask=hit, other=0.0)
    target_z = transform(target_raw, bias_ptr, target, hit, scale, softcap)[0]
    groups = tl.arange(0, GROUPS)[:, None]
    lane = tl.arange(0, BLOCK_V)[None, :]
    top, total, entropy_sum, sum_sq_probs, logit_sum = -float("inf"), 0.0, 0.0, 0.0, 0.0
    for first in range(0, W, GROUPS * BLOCK_V):
        there = groups * BLOCK_V < W - first
        inside = groups * BLOCK_V + lane < W - first
        entries = first + groups * BLOCK_V + lane
        raw = tl.load(row_ptr + entries, mask=there, other=0.0)
        z, _ = transform(raw, bias_ptr, entries, inside, scale, softcap)
        if values_ptr is not None:
            index = (groups + first // BLOCK_V).to(tl.int64) * retained_rows + n
            maxima = shift_of(tl.max(tl.where(inside, z, -float("inf")), axis=1))[:, None]
            values = narrowed(z - maxima, values_ptr.dtype.element_ty)
            tl.store(values_ptr + index * BLOCK_V + lane, values, mask=there)
            tl.store(maxima_ptr + index, maxima, mask=there)
        top, total, entropy_sum, sum_sq_probs, logit_sum = merged(
            (top, total, entropy_sum, sum_sq_probs, logit_sum),
            merged_groups(statistics_of(z, inside)),
        )
    fold(
        (top, total, entropy_sum, sum_sq_probs, logit_sum),
        n,
        True,
        is_first == 0,
        row_max_ptr,
        row_sum_ptr,
        entropy_sum_ptr,
        sum_sq_probs_ptr,
        logit_sum_ptr,
    )
    found = tl.where(hit, target_z, float("nan"))
    tl.store(target_logit_ptr + n, found, mask=hit | (is_first != 0))


@triton.jit(do_not_specialize=["retained_rows", "N", "start"])
def _score_tile_fused_kernel(
    hidden,
    weight,
    targets_ptr,
    partials_ptr,
    target_logit_ptr,
    values_ptr,
    maxima_ptr,
    retained_rows,
    N,
    start,
    W,
    D,
    scale,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROW_BLOCKS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN: tl.constexpr,
    RAGGED: tl.constexpr,
    PARTS: tl.constexpr,
    WITH_ENTROPY_SUM: tl.constexpr,
    WITH_SUM_SQ_PROBS: tl.constexpr,
    WITH_LOGIT_SUM: tl.constexpr,
):
    groups = tl.cdiv(W, BLOCK_V)
    for number in range(tl.program_id(0), tl.cdiv(N, BLOCK_N) * groups, tl.num_programs(0)):
        first_row, group = block_position(number, N, W, BLOCK_N, ROW_BLOCKS)
        first_entry = group * BLOCK_V
        raw = product(
            hidden, weight, first_row, first_entry, N, W, D, BLOCK_N, BLOCK_D, DESCRIPTORS, EVEN
        )
        rows = first_row + tl.arange(0, BLOCK_N)
        row_inside = rows < N
        target = position_in_tile(targets_ptr, rows, row_inside, start, W) - first_entry
        target_z = tl.zeros((BLOCK_N,), tl.float32)
        nothing = tl.zeros((BLOCK_N,), tl.float32)
        found = (nothing - float("inf"), nothing, nothing, nothing, nothing)
        parts = cut(raw, PARTS)
        if values_ptr is not None:
            top = nothing - float("inf")
            for i in tl.static_range(PARTS):
                lane = i * (BLOCK_V // PARTS) + tl.arange(0, BLOCK_V // PARTS)[None, :]
                part = parts[i]
                if RAGGED:
                    part = tl.where(first_entry + lane < W, part, -float("inf"))
                top = tl.maximum(top, tl.max(part, axis=1))
            index = group.to(tl.int64) * retained_rows + rows
            tl.store(maxima_ptr + index, top * scale, mask=row_inside)
            for i in tl.static_range(PARTS):
                lane = i * (BLOCK_V // PARTS) + tl.arange(0, BLOCK_V // PARTS)[None, :]
                values = narrowed((parts[i] - top[:, None]) * scale, values_ptr.dtype.element_ty)
                tl.store(
                    values_ptr + index[:, None] * BLOCK_V + lane, values, mask=row_inside[:, None]
                )
        for i in tl.static_range(PARTS):
            lane = i * (BLOCK_V // PARTS) + tl.arange(0, BLOCK_V // PARTS)[None, :]
            inside = first_entry + lane < W if RAGGED else None
            z = parts[i] * scale
            found = merged(found, statistics_of(z, inside))
            target_z += tl.sum(tl.where(target[:, None] == lane, z, 0.0), axis=1)
        out = partials_ptr + group.to(tl.int64) * N + rows
        stride = N.to(tl.int64) * groups
        tl.store(out, found[0], mask=row_inside)
        tl.store(out + stride, found[1], mask=row_inside)
        if WITH_ENTROPY_SUM:
            tl.store(out + 2 * stride, found[2], mask=row_inside)
        if WITH_SUM_SQ_PROBS:
            tl.store(out + 3 * stride, found[3], mask=row_inside)
        if WITH_LOGIT_SUM:
            tl.store(out + 4 * stride, found[4], mask=row_inside)
        own = (target >= 0) & (target < BLOCK_V)
        tl.store(target_logit_ptr + rows, target_z, mask=own)


@triton.jit(do_not_specialize=["N", "groups", "is_first", "start"])
def _score_tile_merge_kernel(
    partials_ptr,
    targets_ptr,
    row_max_ptr,
    row_sum_ptr,
    entropy_sum_ptr,
    sum_sq_probs_ptr,
    logit_sum_ptr,
    target_logit_ptr,
    N,
    groups,
    is_first,
    start,
    W,
    BLOCK_N: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    stride = groups.to(tl.int64) * N
    nothing = tl.zeros((BLOCK_N,), tl.float32)
    top, total, entropy_sum = nothing - float("inf"), nothing, nothing
    sum_sq_probs, logit_sum = nothing, nothing
    for first_group in range(0, groups, GROUPS):
        group = first_group + tl.arange(0, GROUPS)[:, None]
        there = (group < groups) & (rows < N)[None, :]
        source = partials_ptr + group.to(tl.int64) * N + rows[None, :]
        tops = tl.load(source, mask=there, other=-float("inf"))
        totals = tl.load(source + stride, mask=there, other=0.0)
        entropy_sums, sums_sq_probs, logit_sums = totals, totals, totals
        if entropy_sum_ptr is not None:
            entropy_sums = tl.load(source + 2 * stride, mask=there, other=0.0)
        if sum_sq_probs_ptr is not None:
            sums_sq_probs = tl.load(source + 3 * stride, mask=there, other=0.0)
        if logit_sum_ptr is not None:
            logit_sums = tl.load(source + 4 * stride, mask=there, other=0.0)
        top, total, entropy_sum, sum_sq_probs, logit_sum = merged(
            (top, total, entropy_sum, sum_sq_probs, logit_sum),
            merged_groups((tops, totals, entropy_sums, sums_sq_probs, logit_sums)),
        )
    fold(
        (top, total, entropy_sum, sum_sq_probs, logit_sum),
        rows,
        rows < N,
        (rows < N) & (is_first == 0),
        row_max_ptr,
        row_sum_ptr,
        entropy_sum_ptr,
        sum_sq_probs_ptr,
        logit_sum_ptr,
    )
    elsewhere = position_in_tile(targets_ptr, rows, rows < N, start, W) < 0
    unknown = nothing + float("nan")
    tl.store(target_logit_ptr + rows, unknown, mask=(rows < N) & elsewhere & (is_first != 0))
