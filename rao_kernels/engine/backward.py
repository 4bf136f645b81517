"""The backward walk over vocabulary tiles. Legend: N rows, V vocabulary, D hidden size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .. import _memory, backends
from ..backends import Gradients, Head, RetainedSlot, RowGradients, Tile
from . import plan
from .sparsity import Sparsity, in_order, needed_rows, take, take_gradients, with_words
from .work import count


@dataclass(frozen=True)
class Needs:
    """Which gradients are wanted."""

    dhidden: bool
    dweight: bool
    dbias: bool


def differentiate(
    head: Head,
    backend: str,
    rows: RowGradients,
    memory: Tensor,
    scored_rows: int,
    needs: Needs,
    sparse: Sparsity | None = None,
) -> Gradients:
    """Gradients of the rows in `head`; dhidden and dbias in the accumulator dtype.

    memory: the retained buffer of the forward pass over `scored_rows` rows.
    sparse: what that pass learnt about its tiles; None: nothing is dropped.
    """
    traits = backends.get(backend).traits(head.hidden.device.type)
    cut = plan.tiles(head.weight.shape[0], traits, sparse=sparse is not None)
    slots = plan.RetainedBuffer(backend, memory, scored_rows, head.hidden.dtype).slots(cut)
    rows, factor = _in_range(rows, head.hidden.dtype)
    out = _buffers(head, needs, factor)
    if head.rows:
        walk = _dense_walk if sparse is None else partial(_sparse_walk, sparse)
        for tile, slot, kept in walk(head, backend, rows, cut, slots, out):
            products = (slot is None) + needs.dhidden + needs.dweight
            count(
                gemm_flops=2 * products * kept * tile.width * head.weight.shape[1],
                row_tiles=head.rows,
                row_tiles_kept=kept,
            )
    count(rows_differentiated=head.rows)
    if out.dhidden is not None and factor is not None:
        out.dhidden.mul_(factor)
    return out


def _dense_walk(
    head: Head,
    backend: str,
    rows: RowGradients,
    cut: list[Tile],
    slots: list[RetainedSlot | None],
    out: Gradients,
) -> Iterator[tuple[Tile, RetainedSlot | None, int]]:
    """Every tile with all rows; yields it, its slot, and the number of rows."""
    module = backends.get(backend)
    scratch = module.scratch(head, cut[0].width, backward=True)
    module.begin(head, scratch, backward=True)
    for tile, slot in zip(cut, slots, strict=True):
        module.grad_tile(head, tile, rows, slot, out, scratch)
        yield tile, slot, head.rows


def _sparse_walk(
    sparse: Sparsity,
    head: Head,
    backend: str,
    rows: RowGradients,
    cut: list[Tile],
    slots: list[RetainedSlot | None],
    out: Gradients,
) -> Iterator[tuple[Tile, RetainedSlot | None, int]]:
    """Every tile with the rows that need it, gathered."""
    module = backends.get(backend)
    ordered = in_order(head, sparse.order)
    scratch = module.scratch(ordered, cut[0].width, backward=True)
    needed = needed_rows(sparse, ordered, cut)
    for number, tile in enumerate(with_words(cut, sparse.order)):
        index = needed.rows[number]
        slot = slots[number] if number < needed.retained_tiles else None
        own = take(ordered, index)
        if own.rows:
            if number == 0 or index is not None or needed.rows[number - 1] is not None:
                module.begin(own, scratch, backward=True)
            own_rows, own_out = take_gradients(rows, index), replace(out, dhidden_row=index)
            module.grad_tile(own, tile, own_rows, slot, own_out, scratch)
        else:
            _put_zeros(tile, out)
        yield tile, slot, own.rows


def _put_zeros(tile: Tile, out: Gradients) -> None:
    """The gradients of words that no row needs."""
    for table in (out.dweight, out.dbias):
        if table is not None:
            tile.put(table, table.new_zeros(()))


def _in_range(rows: RowGradients, dtype: torch.dtype) -> tuple[RowGradients, Tensor | None]:
    """For fp16, row gradients divided by a power of two that bounds them, and that power.

    A loss scaler's 65536 would overflow the logit gradient otherwise. No host read.
    """
    if dtype != torch.float16:
        return rows, None
    bound = rows.logp_grad.abs().amax() if rows.logp_grad.numel() else rows.logp_grad.new_ones(())
    for extra in (rows.mass_grad, rows.log_mass_grad):
        if extra is not None and extra.numel():
            bound = torch.maximum(bound, extra.abs().amax())
    exponent = torch.frexp(bound).exponent
    factor = torch.where(bound > 0, torch.ldexp(torch.ones_like(bound), exponent), 1.0)

    def scaled(gradient: Tensor | None) -> Tensor | None:
        return None if gradient is None else gradient / factor

    return (
        replace(
            rows,
            logp_grad=rows.logp_grad / factor,
            mass_grad=scaled(rows.mass_grad),
            log_mass_grad=scaled(rows.log_mass_grad),
        ),
        factor,
    )


def _buffers(head: Head, needs: Needs, unscale: Tensor | None) -> Gradients:
    """dhidden is added to; the others are written, unless there are no rows, and are zero then."""
    vocabulary, size = head.weight.shape

    def buffer(*shape: int, dtype: torch.dtype, zero: bool) -> Tensor:
        made = _memory.empty(shape, dtype, head.hidden.device)
        return made.zero_() if zero else made

    unwritten = not head.rows
    return Gradients(
        dhidden=buffer(head.rows, size, dtype=head.accumulator, zero=True)
        if needs.dhidden
        else None,
        dweight=buffer(vocabulary, size, dtype=head.weight.dtype, zero=unwritten)
        if needs.dweight
        else None,
        dbias=buffer(vocabulary, dtype=head.accumulator, zero=unwritten) if needs.dbias else None,
        unscale=unscale,
    )
