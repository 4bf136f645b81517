"""The two tile operations in plain torch, for any device and float dtype: the reference.

Matrix products are the vendor's (`products`), with fp32 sums of half-precision operands.
Legend: N rows, V vocabulary, D hidden size, W entries of a tile, G entries of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .products import add_products, logits, traits_on, weight_of_gradients
from .tiles import (
    GROUP,
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

NAME = "eager"
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def supports(device: torch.device, dtype: torch.dtype) -> str | None:
    return None if dtype in DTYPES else f"it computes in {DTYPES}, not {dtype}"


def traits(device_type: str) -> Traits:
    return traits_on(device_type)


def retained_bytes(rows: int, width: int, precision: Precision) -> int:
    return grouped_bytes(rows, width, precision)


def scratch(head: Head, width: int, *, backward: bool) -> Sequence[Tensor]:
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
    if first:
        state.reset()
    z, _ = _transform(head, tile, logits(head, tile))
    if retained is not None:
        _retain(z, RetainedTile.on(retained, tile, head.precision))
    _fold(z, state)
    local = head.targets - tile.start
    inside = (local >= 0) & (local < tile.width)
    target_logit = z.gather(1, local.clamp(0, tile.width - 1)[:, None]).squeeze(1)
    state.target_logit.copy_(torch.where(inside, target_logit, state.target_logit))


def grad_tile(
    head: Head,
    tile: Tile,
    rows: RowGradients,
    retained: RetainedSlot | None,
    out: Gradients,
    scratch: Sequence[Tensor],
) -> None:
    weight = weight_of_gradients(head, tile, retained, out)
    if retained is None:
        z, slope = _transform(head, tile, logits(head, tile, weight=weight))
    else:
        z = _restore(head, tile, retained, rows)
        slope = _slope(head, tile, rows, z)
    dz = _logit_gradient(head, tile, rows, z)
    draw = (dz * slope * head.scale).to(head.precision.dz)
    add_products(head, tile, draw, out, weight)


def _transform(head: Head, tile: Tile, raw: Tensor) -> tuple[Tensor, Tensor | float]:
    """Return the logits ``[N, W]`` and the softcap's derivative (without the scale)."""
    bias = head.bias_tile(tile)
    z = raw if bias is None else raw + bias
    if head.softcap is None:
        return z * head.scale, 1.0
    capped = torch.tanh(z / head.softcap)
    return capped * (head.softcap * head.scale), 1.0 - capped * capped


def _slope(head: Head, tile: Tile, rows: RowGradients, z: Tensor) -> Tensor | float:
    """Return the softcap's derivative at retained logits; the target's comes from its log-prob."""
    if head.softcap is None:
        return 1.0
    target_logit = rows.logp + (rows.row_max + rows.log_sum)
    z = torch.where(_is_target(head, tile), target_logit[:, None], z)
    return 1.0 - (z / (head.softcap * head.scale)).square()


def _is_target(head: Head, tile: Tile) -> Tensor:
    """Return ``[N, W]``, True at the targets."""
    entries = torch.arange(tile.start, tile.stop, device=head.targets.device)
    return head.targets[:, None] == entries


def _fold(z: Tensor, state: RowState) -> None:
    """Merge the statistics of a tile's logits into the running ones."""
    row_max = torch.maximum(state.row_max, z.amax(1))
    # Rows that are all -inf so far are shifted by 0: -inf - -inf is NaN.
    shift = torch.where(row_max == -torch.inf, 0.0, row_max)
    centred = z - shift[:, None]
    e = centred.exp()
    moved = (state.row_max - shift).masked_fill(state.row_max == -torch.inf, 0.0)
    decay = moved.exp()
    if state.entropy_sum is not None:
        state.entropy_sum.copy_((state.entropy_sum + state.row_sum * moved) * decay)
        state.entropy_sum.add_((e * centred).masked_fill(e == 0, 0.0).sum(1))
    if state.sum_sq_probs is not None:
        state.sum_sq_probs.copy_(state.sum_sq_probs * decay * decay + (e * e).sum(1))
    if state.logit_sum is not None:
        state.logit_sum.add_(z.sum(1))
    state.row_sum.copy_(state.row_sum * decay + e.sum(1))
    state.row_max.copy_(row_max)


def _grouped(z: Tensor) -> Tensor:
    """Return ``[N, W]`` as ``[N, groups, G]``, padded with -inf."""
    padded = functional.pad(z, (0, -z.shape[1] % GROUP), value=-torch.inf)
    return padded.view(z.shape[0], -1, GROUP)


def _retain(z: Tensor, retained: RetainedTile) -> None:
    grouped = _grouped(z)
    maxima = grouped.amax(2)
    maxima = maxima.masked_fill(maxima == -torch.inf, 0.0)
    retained.maxima.copy_(maxima.T)
    retained.values.copy_((grouped - maxima[:, :, None]).transpose(0, 1))


def _restore(head: Head, tile: Tile, retained: RetainedSlot, rows: RowGradients) -> Tensor:
    kept = RetainedTile.on(retained, tile, head.precision)
    values, maxima = kept.values, kept.maxima
    if rows.retained_row is not None:
        values, maxima = values[:, rows.retained_row], maxima[:, rows.retained_row]
    z = values.to(maxima.dtype) + maxima[:, :, None]
    return z.transpose(0, 1).flatten(1)[:, : tile.width]


def _logit_gradient(head: Head, tile: Tile, rows: RowGradients, z: Tensor) -> Tensor:
    """Return dz ``[N, W]`` by the formula of `RowGradients`, without scale and slope."""
    is_target = _is_target(head, tile)
    log_p = (z - rows.row_max[:, None]) - rows.log_sum[:, None]
    log_p = torch.where(is_target, rows.logp[:, None], log_p)
    p = log_p.exp()
    coefficient = torch.where(is_target, -torch.expm1(log_p), -p)
    dz = rows.logp_grad[:, None] * coefficient
    if rows.p_factor is None or rows.p_log_p_factor is None:
        return dz
    p_log_p = (p * log_p).masked_fill(p == 0, 0.0)
    return dz + rows.p_factor[:, None] * p + rows.p_log_p_factor[:, None] * p_log_p
