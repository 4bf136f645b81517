"""Select the tiles that each row needs in backward.

Each row drops the tiles with the least probability mass, at most `tolerance` in all. With p the
op's own probabilities and g a row's gradient from its log-prob minus that from its log-sum-exp,
dropping changes the gradients, beyond the backend's own rounding, by at most

    |d dhidden_n|  <= scale |g_n| tolerance max_v |w_v|
    sum_v |d dweight_v| <= scale tolerance sum_n |g_n| |h_n|

and an entropy gradient ge adds ``scale |ge| (m log(n / m) + m H) max_v |w_v|`` to the first, and
the same with ``|h_n|`` for ``max_v |w_v|``, summed over rows, to the second; m is the probability
mass and n the number of the entries dropped. Legend: N rows, V vocabulary, D hidden size, K tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import Head, RowGradients, RowState, Tile
from .plan import Plan

FIXED_POINT = 2**50  # integer that stands for a probability mass of 1


@dataclass(frozen=True)
class Sparsity:
    """Results of a sparse forward pass that its backward needs.

    order: ``[V]`` vocabulary entry at each position of the walk. tile_mass: ``[N, K]`` probability
    mass of each tile for each row. retained_tiles: ``[1]``, how many tiles, from the first on, were
    retained.
    """

    order: Tensor
    tile_mass: Tensor
    retained_tiles: Tensor


def needing_share(states: RowState, number: int, tolerance: float) -> float:
    """Estimate the share of rows that need a tile in backward, once the tiles up to it are scored.

    A row counts if tile `number` holds more than `tolerance` of the row's probability mass so far.
    `states` has one part per tile. One read on the host.
    """
    row_max, row_sum = states.row_max[: number + 1], states.row_sum[: number + 1]
    top = row_max.amax(0)
    mass = row_sum * (row_max - top.masked_fill(top == -torch.inf, 0.0)).exp()
    return float((mass[number] > tolerance * mass.sum(0)).float().mean())


def in_order(head: Head, order: Tensor) -> Head:
    """Return the head with targets as positions in `order`; -1 for one outside ``[0, V)``."""
    position = torch.empty_like(order)
    position[order] = torch.arange(order.numel(), device=order.device)
    valid = (head.targets >= 0) & (head.targets < order.numel())
    targets = torch.where(valid, position[head.targets.clamp(0, order.numel() - 1)], -1)
    return Head(head.hidden, head.weight, head.bias, targets, head.scale, head.softcap)


def take(head: Head, rows: Tensor | None) -> Head:
    """Return the head with some of its rows; None: all."""
    if rows is None:
        return head
    hidden, targets = head.hidden.index_select(0, rows), head.targets.index_select(0, rows)
    return Head(hidden, head.weight, head.bias, targets, head.scale, head.softcap)


def take_gradients(gradients: RowGradients, rows: Tensor | None) -> RowGradients:
    """Return the row gradients of some of the rows; None: all."""
    if rows is None:
        return gradients

    def taken(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.index_select(0, rows)

    retained_row = rows if gradients.retained_row is None else gradients.retained_row[rows]
    return RowGradients(
        gradients.row_max.index_select(0, rows),
        gradients.log_sum.index_select(0, rows),
        gradients.logp.index_select(0, rows),
        gradients.logp_grad.index_select(0, rows),
        taken(gradients.p_factor),
        taken(gradients.p_log_p_factor),
        retained_row,
    )


def arranged(head: Head, plan: Plan, order: Tensor | None) -> tuple[Head, tuple[Tile, ...]]:
    """Return the head and the tiles of a walk in this order; None: unchanged."""
    if order is None:
        return head, plan.tiles
    ordered = (tile._replace(entries=order[tile.start : tile.stop]) for tile in plan.tiles)
    return in_order(head, order), tuple(ordered)


@dataclass(frozen=True)
class Needed:
    """Rows that need each tile.

    rows: for each tile the indices of these rows, or None for all. retained_tiles: how many tiles,
    from the first on, were retained where they had a slot.
    """

    rows: list[Tensor | None]
    retained_tiles: int


def every_row(plan: Plan) -> Needed:
    """Dense pass: every row needs every tile."""
    return Needed([None] * len(plan.tiles), len(plan.tiles))


def needed_rows(sparsity: Sparsity, head: Head, plan: Plan) -> Needed:
    """Sparse pass: each row needs the tiles that it does not drop. One read on the host.

    The tile that holds a row's target is always needed. `head` is in the order of the walk.
    """
    own = head.targets.clamp(min=0).div(plan.width, rounding_mode="floor")[:, None]
    has_target = (head.targets >= 0)[:, None]
    mass = sparsity.tile_mass
    mass = mass.scatter(1, own, mass.gather(1, own) + has_target * 2.0)
    ascending, tile = mass.sort(dim=1)
    # Sums of integers, rounded up, are the same in any order on any device. NaN counts as 1, so
    # that a row of NaN drops nothing.
    sums = (ascending.double().nan_to_num(nan=1.0) * FIXED_POINT).ceil().long().cumsum(1)
    dropped = sums <= int(plan.tolerance * FIXED_POINT)
    keep = torch.ones_like(dropped).scatter_(1, tile, ~dropped)
    *counts, retained = torch.cat([keep.sum(0), sparsity.retained_tiles]).tolist()
    found = torch.nonzero_static(keep.T.contiguous(), size=sum(counts))[:, 1].contiguous()
    rows = [None if len(rows) == head.rows else rows for rows in found.split(counts)]
    return Needed(rows, retained)
