"""The backward walk over vocabulary tiles. Legend: N rows, V vocabulary, D hidden size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import backends
from ..backends import Gradients, Head, RowGradients
from . import plan
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
) -> Gradients:
    """Gradients of the rows in `head`; dhidden and dbias in the accumulator dtype.

    memory: the retained buffer of the forward pass over `scored_rows` rows.
    """
    module = backends.get(backend)
    vocabulary, device = head.weight.shape[0], head.hidden.device
    cut = plan.tiles(vocabulary, device.type)
    slots = plan.RetainedBuffer(memory, scored_rows, head.hidden.dtype).slots(cut)
    rows, factor = _in_range(rows, head.hidden.dtype)
    out = _buffers(head, needs, None if factor is None else factor.to(head.accumulator))
    if head.rows:
        scratch = module.scratch(head, cut[0].width, backward=True)
        for tile, slot in zip(cut, slots, strict=True):
            module.grad_tile(head, tile, rows, slot, out, scratch)
            products = (slot is None) + needs.dhidden + needs.dweight
            count(gemm_flops=2 * products * head.rows * tile.width * head.weight.shape[1])
    count(rows_differentiated=head.rows)
    if out.dhidden is not None and factor is not None:
        out.dhidden.mul_(factor)
    return out


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
    """Without rows nothing is written, so the outputs start at zero then."""
    vocabulary, size = head.weight.shape
    device = head.hidden.device
    make = torch.empty if head.rows else torch.zeros

    return Gradients(
        dhidden=torch.zeros(head.rows, size, dtype=head.accumulator, device=device)
        if needs.dhidden
        else None,
        dweight=make(vocabulary, size, dtype=head.weight.dtype, device=device)
        if needs.dweight
        else None,
        dbias=make(vocabulary, dtype=head.accumulator, device=device) if needs.dbias else None,
        unscale=unscale,
    )
