"""The backward walk over vocabulary tiles. Legend: N rows, V vocabulary, D hidden size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import _memory, backends
from ..backends import Gradients, Head, RetainedSlot, RowGradients, Tile
from .plan import Plan
from .retained import RetainedBuffer
from .sparsity import Needed, Sparsity, every_row, in_order, needed_rows, take, take_gradients
from .work import count


@dataclass(frozen=True)
class Needs:
    """Gradients to compute.

    dhidden: the dtype that the caller rounds dhidden to, or None where it is not wanted.
    """

    dhidden: torch.dtype | None
    dweight: bool
    dbias: bool


def differentiate(
    head: Head,
    plan: Plan,
    rows: RowGradients,
    memory: Tensor,
    scored_rows: int,
    needs: Needs,
    sparse: Sparsity | None = None,
) -> Gradients:
    """Return the gradients of the rows in `head`; dhidden and dbias in the accumulator dtype.

    Where a single tile writes dhidden, it has the caller's dtype already, if products can have it.

    memory: the retained buffer of the forward pass over `scored_rows` rows, by the same plan.
    sparse: results of a sparse forward pass; None for a dense plan.
    """
    assert plan.precision == head.precision and plan.sparse == (sparse is not None)
    slots = RetainedBuffer(plan, memory, scored_rows).slots()
    rows, factor = _in_range(rows, plan.precision.dz)
    out = _buffers(head, plan, needs, factor)
    if head.rows:
        _walk(head, plan, rows, slots, out, sparse)
    count(rows_differentiated=head.rows)
    if out.dhidden is not None and factor is not None:
        out.dhidden.mul_(factor)
    return out


def _walk(
    head: Head,
    plan: Plan,
    rows: RowGradients,
    slots: list[RetainedSlot | None],
    out: Gradients,
    sparse: Sparsity | None,
) -> None:
    """Add the gradients of every tile, from all rows or from a gathered copy of those it needs."""
    module = backends.get(plan.backend)
    scratch = module.scratch(head, plan.width, backward=True)
    needed = every_row(plan)
    if sparse is not None:
        head = in_order(head, sparse.order)
        needed = needed_rows(sparse, head, plan)
    retained = needed.retained_tiles
    slots = [*slots[:retained], *[None] * (len(slots) - retained)]
    begun_with_all = False
    for tile, index, slot in zip(needed.tiles, needed.rows, slots, strict=True):
        own = take(head, index)
        if not own.rows:
            _put_zeros(tile, out)
            continue
        if index is not None or not begun_with_all:
            module.begin(own, scratch, backward=True)
        begun_with_all = index is None
        own_out = out if index is None else replace(out, dhidden_row=index)
        module.grad_tile(own, tile, take_gradients(rows, index), slot, own_out, scratch)
    _count_products(head, plan, needed, slots, out)


def _count_products(
    head: Head, plan: Plan, needed: Needed, slots: list[RetainedSlot | None], out: Gradients
) -> None:
    """Count the products of each tile with the rows that need it."""
    for tile, index, slot in zip(plan.tiles, needed.rows, slots, strict=True):
        kept = head.rows if index is None else index.numel()
        products = (slot is None) + (out.dhidden is not None) + (out.dweight is not None)
        flops = 2 * products * kept * tile.width * plan.size
        count(gemm_flops=flops, row_tiles=head.rows, row_tiles_kept=kept)


def _put_zeros(tile: Tile, out: Gradients) -> None:
    """Write the gradients of a tile that no row needs."""
    for table in (out.dweight, out.dbias):
        if table is not None:
            tile.put(table, table.new_zeros(()))


def _in_range(rows: RowGradients, dtype: torch.dtype) -> tuple[RowGradients, Tensor | None]:
    """Scale row gradients into the range of fp16 logit gradients; return them and the factor.

    They are divided by a power of two that bounds them, because a loss scaler's 65536 would
    overflow the logit gradient. (rows, None) for other dtypes. No host read.
    """
    if dtype != torch.float16:
        return rows, None
    bound = rows.logp_grad.abs().amax() if rows.logp_grad.numel() else rows.logp_grad.new_ones(())
    for extra in (rows.p_factor, rows.p_log_p_factor):
        if extra is not None and extra.numel():
            bound = torch.maximum(bound, extra.abs().amax())
    exponent = torch.frexp(bound).exponent
    factor = torch.ldexp(torch.ones_like(bound), exponent).masked_fill_(~(bound > 0), 1.0)

    def scaled(gradient: Tensor | None) -> Tensor | None:
        return None if gradient is None else gradient / factor

    return (
        replace(
            rows,
            logp_grad=rows.logp_grad / factor,
            p_factor=scaled(rows.p_factor),
            p_log_p_factor=scaled(rows.p_log_p_factor),
        ),
        factor,
    )


def _buffers(head: Head, plan: Plan, needs: Needs, unscale: Tensor | None) -> Gradients:
    """Allocate the gradients: dhidden zeroed, as tiles add to it, but for a single tile; the others
    uninitialised, as each tile writes its part, or zeroed where there are no rows."""
    vocabulary, size, accumulate = plan.vocabulary, plan.size, plan.precision.accumulate
    final = needs.dhidden or accumulate
    rounds = plan.single_tile and final in (plan.precision.dz, accumulate)
    dtype = final if rounds else accumulate

    def buffer(*shape: int, dtype: torch.dtype, zero: bool) -> Tensor:
        made = _memory.empty(shape, dtype, head.hidden.device)
        return made.zero_() if zero else made

    unwritten = not head.rows
    return Gradients(
        dhidden=buffer(head.rows, size, dtype=dtype, zero=not plan.single_tile)
        if needs.dhidden
        else None,
        dweight=buffer(vocabulary, size, dtype=head.weight.dtype, zero=unwritten)
        if needs.dweight
        else None,
        dbias=buffer(vocabulary, dtype=accumulate, zero=unwritten) if needs.dbias else None,
        unscale=unscale,
        single_tile=plan.single_tile,
    )
