"""Helpers of the Triton kernels: order of blocks, products, logits, statistics, gradients.

A block's entries are one group of a retained tile, so that a block of products has the maximum that
it is retained with. Legend: N rows, W entries of a tile, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tiles import GROUP

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
BLOCK_V = tl.constexpr(GROUP)  # entries of a block
STATISTICS = 5  # of a group: max, sum, entropy_sum, sum_sq_probs, logit_sum


def launch(
    kernel: Callable[..., object],
    grid: int,
    device: torch.device,
    *arguments: object,
    warps: int,
    stages: int = 1,
    **constants: object,
) -> None:
    """Run `grid` programs of a kernel on the current stream of `device`."""
    options = compile_options(warps, stages)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(grid,)](*arguments, **constants, **options)  # type: ignore[index]


def compile_options(warps: int, stages: int) -> dict[str, int | bool]:
    """Return the options of a launch for the compiler.

    Multiplications and additions are not contracted to fused ones: ``z - max`` would use an
    unrounded z, and a log-prob could be above 0.
    """
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}


def padded(entries: int) -> int:
    """Return the row stride of a scratch tile: whole groups, so that accesses are wide."""
    return -(-entries // GROUP) * GROUP


def descriptor(matrix: Tensor, rows: int, columns: int) -> object:
    """Return a tensor descriptor that loads ``[rows, columns]`` blocks of a contiguous matrix."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    # A matrix of one row is contiguous with any stride of rows.
    return TensorDescriptor(matrix, list(matrix.shape), [matrix.shape[1], 1], [rows, columns])


def describable(matrix: Tensor) -> bool:
    """Return True if `descriptor` accepts the matrix: rows and base on 16 bytes."""
    return (matrix.shape[1] * matrix.itemsize) % 16 == 0 and matrix.data_ptr() % 16 == 0


@triton.jit
def dot(a, b, total):
    """``total + a @ b`` in fp32; the interpreter computes half-precision dots wrongly."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def narrowed(x, dtype: tl.constexpr):
    """fp32 values rounded to the nearest of `dtype`; the interpreter truncates bfloat16 instead."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def block_position(number, N, W, BLOCK_N: tl.constexpr, ROW_BLOCKS: tl.constexpr):
    """First row and group of the `number`-th block.

    ROW_BLOCKS blocks of rows pass over the entries together: concurrent programs then read about as
    many rows as entries, most of them from the L2 cache.
    """
    row_blocks = tl.cdiv(N, BLOCK_N)
    groups = tl.cdiv(W, BLOCK_V)
    band = number // (ROW_BLOCKS * groups)
    height = tl.minimum(row_blocks - band * ROW_BLOCKS, ROW_BLOCKS)
    within = number - band * ROW_BLOCKS * groups
    return (band * ROW_BLOCKS + within % height) * BLOCK_N, within // height


@triton.jit
def product(
    hidden,
    weight,
    first_row,
    first_entry,
    N,
    W,
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """``[BLOCK_N, BLOCK_V]`` products of contiguous `hidden` ``[N, D]`` and `weight` ``[W, D]``.

    Products of rows and entries beyond the end are undefined. EVEN: BLOCK_D divides D.
    """
    total = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    if not DESCRIPTORS:
        size = tl.arange(0, BLOCK_D)
        rows = tl.minimum(first_row + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)
        entries = tl.minimum(first_entry + tl.arange(0, BLOCK_V), W - 1).to(tl.int64)
        hidden_ptrs = hidden + rows[:, None] * D + size[None, :]
        weight_ptrs = weight + entries[:, None] * D + size[None, :]
    for d in range(0, D, BLOCK_D):
        if DESCRIPTORS:
            a = hidden.load([first_row, d])
            b = weight.load([first_entry, d])
        elif EVEN:
            a = tl.load(hidden_ptrs + d)
            b = tl.load(weight_ptrs + d)
        else:
            inside = size[None, :] < D - d
            a = tl.load(hidden_ptrs + d, mask=inside, other=0.0)
            b = tl.load(weight_ptrs + d, mask=inside, other=0.0)
        total = dot(a, b.T, total)
    return total


@triton.jit
def expm1(x):
    """``exp(x) - 1`` for x <= 0, to fp32's precision: Taylor's series near 0."""
    near = tl.maximum(x, -0.5)
    series = 1.0 + near / 9.0
    for i in tl.static_range(8, 1, -1):
        series = 1.0 + near * (1.0 / i) * series
    return tl.where(x > -0.5, near * series, tl.exp(x) - 1.0)


@triton.jit
def transform(raw, bias_ptr, entries, inside, scale, softcap):
    """Logits of raw products and the softcap's derivative (without the scale).

    entries: positions in the tile, which broadcast to `raw`. inside: mask of those that exist;
    None: all of them do.
    """
    if bias_ptr is not None:
        raw = raw + tl.load(bias_ptr + entries, mask=inside, other=None if inside is None else 0.0)
    slope = 1.0
    if softcap is None:
        z = raw * scale
    else:
        x = raw / softcap
        t = expm1(-2.0 * tl.abs(x))
        capped = -t / (2.0 + t)
        z = tl.where(x < 0.0, -capped, capped) * (softcap * scale)
        slope = 4.0 * (1.0 + t) / ((2.0 + t) * (2.0 + t))
    return z, slope


@triton.jit
def slope_at(z, scale, softcap):
    """The softcap's derivative at the logits `z` (without the scale)."""
    slope = 1.0
    if softcap is not None:
        capped = z * (1.0 / (softcap * scale))
        slope = 1.0 - capped * capped
    return slope


@triton.jit
def position_in_tile(targets_ptr, rows, inside, start, W):
    """int32 position of each row's target in the tile, -1 where it is not in it."""
    position = tl.load(targets_ptr + rows, mask=inside, other=-1) - start
    return tl.where((position >= 0) & (position < W), position, -1).to(tl.int32)


@triton.jit
def shift_of(top):
    """The number subtracted from logits: the maximum, or 0 where all are -inf."""
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit
def moved(top, shift):
    """``top - shift``, or 0 where there are no finite logits yet (`top` is -inf)."""
    return tl.where(top == -float("inf"), 0.0, top - shift)


@triton.jit
def cut(x, PARTS: tl.constexpr):
    """The columns of ``[M, K]`` in 4 or 8 parts, so that the epilogue needs fewer registers."""
    first, second = _halves(x)
    a, b = _halves(first)
    c, d = _halves(second)
    parts = (a, b, c, d)
    if PARTS == 8:
        aa, ab = _halves(a)
        ba, bb = _halves(b)
        ca, cb = _halves(c)
        da, db = _halves(d)
        parts = (aa, ab, ba, bb, ca, cb, da, db)  # type: ignore[assignment]
    return parts


@triton.jit
def _halves(x):
    folded = tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2))
    return tl.split(tl.permute(folded, (0, 2, 1)))


@triton.jit
def statistics_of(z, inside):
    """The STATISTICS of each row of ``z [M, K]``; unused ones are eliminated by the compiler.

    inside: mask of the entries that exist; None: all of them do.
    """
    logit_sum = tl.sum(z if inside is None else tl.where(inside, z, 0.0), axis=1)
    z = z if inside is None else tl.where(inside, z, -float("inf"))
    top = tl.max(z, axis=1)
    centred = z - shift_of(top)[:, None]
    e = tl.exp(centred)
    entropy_sum = tl.sum(tl.where(e == 0.0, 0.0, e * centred), axis=1)
    return top, tl.sum(e, axis=1), entropy_sum, tl.sum(e * e, axis=1), logit_sum


@triton.jit
def merged(a, b):
    """The STATISTICS of two sets of entries together."""
    top = tl.maximum(a[0], b[0])
    shift = shift_of(top)
    a_moved, b_moved = moved(a[0], shift), moved(b[0], shift)
    a_decay, b_decay = tl.exp(a_moved), tl.exp(b_moved)
    total = a[1] * a_decay + b[1] * b_decay
    entropy_sum = (a[2] + a[1] * a_moved) * a_decay + (b[2] + b[1] * b_moved) * b_decay
    sum_sq_probs = a[3] * (a_decay * a_decay) + b[3] * (b_decay * b_decay)
    return top, total, entropy_sum, sum_sq_probs, a[4] + b[4]


@triton.jit
def merged_groups(groups):
    """`merged` along axis 0."""
    top = tl.max(groups[0], axis=0)
    by = moved(groups[0], shift_of(top))
    decay = tl.exp(by)
    total = tl.sum(groups[1] * decay, axis=0)
    entropy_sum = tl.sum((groups[2] + groups[1] * by) * decay, axis=0)
    sum_sq_probs = tl.sum(groups[3] * (decay * decay), axis=0)
    return top, total, entropy_sum, sum_sq_probs, tl.sum(groups[4], axis=0)


@triton.jit
def fold(
    new,
    rows,
    inside,
    known,
    row_max_ptr,
    row_sum_ptr,
    entropy_sum_ptr,
    sum_sq_probs_ptr,
    logit_sum_ptr,
):
    """Merge the STATISTICS `new` into the running ones of `rows`.

    inside: mask of the rows that exist; known: of those that have running statistics.
    """
    top = tl.load(row_max_ptr + rows, mask=known, other=-float("inf"))
    total = tl.load(row_sum_ptr + rows, mask=known, other=0.0)
    entropy_sum, sum_sq_probs, logit_sum = total, total, total
    if entropy_sum_ptr is not None:
        entropy_sum = tl.load(entropy_sum_ptr + rows, mask=known, other=0.0)
    if sum_sq_probs_ptr is not None:
        sum_sq_probs = tl.load(sum_sq_probs_ptr + rows, mask=known, other=0.0)
    if logit_sum_ptr is not None:
        logit_sum = tl.load(logit_sum_ptr + rows, mask=known, other=0.0)
    both = merged((top, total, entropy_sum, sum_sq_probs, logit_sum), new)
    tl.store(row_max_ptr + rows, both[0], mask=inside)
    tl.store(row_sum_ptr + rows, both[1], mask=inside)
    if entropy_sum_ptr is not None:
        tl.store(entropy_sum_ptr + rows, both[2], mask=inside)
    if sum_sq_probs_ptr is not None:
        tl.store(sum_sq_probs_ptr + rows, both[3], mask=inside)
    if logit_sum_ptr is not None:
        tl.store(logit_sum_ptr + rows, both[4], mask=inside)


@triton.jit
def row_gradients(
    rows,
    inside,
    scale,
    row_max_ptr,
    log_sum_ptr,
    logp_ptr,
    logp_grad_ptr,
    p_factor_ptr,
    p_log_p_factor_ptr,
):
    """The numbers of each row that `logit_gradient` needs, times `scale`: see `RowGradients`."""
    row_max = tl.load(row_max_ptr + rows, mask=inside, other=0.0)
    log_sum = tl.load(log_sum_ptr + rows, mask=inside, other=0.0)
    logp = tl.load(logp_ptr + rows, mask=inside, other=0.0)
    logp_grad = tl.load(logp_grad_ptr + rows, mask=inside, other=0.0) * scale
    of_p, of_p_log_p, at_target = -logp_grad, logp_grad, logp_grad * -expm1(logp)
    if p_factor_ptr is not None:
        p_factor = tl.load(p_factor_ptr + rows, mask=inside, other=0.0) * scale
        of_p_log_p = tl.load(p_log_p_factor_ptr + rows, mask=inside, other=0.0) * scale
        of_p = p_factor - logp_grad
        p = tl.exp(logp)
        at_target += p_factor * p + of_p_log_p * tl.where(p == 0.0, 0.0, p * logp)
    return row_max, log_sum, of_p, of_p_log_p, at_target


@triton.jit
def logit_gradient(z, is_target, of_row, WITH_P_FACTORS: tl.constexpr):
    """Gradient of the logits `z`, times the scale. of_row: the result of `row_gradients`."""
    row_max, log_sum, of_p, of_p_log_p, at_target = of_row
    log_p = (z - row_max) - log_sum
    p = tl.exp(log_p)
    dz = of_p * p
    if WITH_P_FACTORS:
        dz += of_p_log_p * tl.where(p == 0.0, 0.0, p * log_p)
    return tl.where(is_target, at_target, dz)
