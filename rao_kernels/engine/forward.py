"""The forward walk over vocabulary tiles. Legend: N rows, V vocabulary, D hidden size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import backends
from ..backends import Head, RetainedSlot, RowState
from . import sparsity
from .plan import Plan
from .retained import RetainedBuffer
from .work import count


@dataclass(frozen=True)
class Statistics:
    """Which optional row statistics a pass collects."""

    entropy: bool = False
    square_sum: bool = False
    mean: bool = False


@dataclass(frozen=True)
class Scores:
    """Results of a forward pass, each ``[N]`` in the accumulator dtype but for the bool `is_top1`;
    None = not collected.

    ``logp = (target_logit - row_max) - log_sum``: the maximum and the log of the sum stay apart,
    because one rounded lse loses what rows with a peaked softmax need.
    tile_mass: ``[N, K]``, the probability that each of the K tiles holds; None without an order.
    retained_tiles: ``[1]`` int64, how many tiles, from the first on, are retained; likewise.
    """

    logp: Tensor
    row_max: Tensor
    log_sum: Tensor
    is_top1: Tensor
    entropy: Tensor | None
    log_sum_sq_probs: Tensor | None
    mean_logits: Tensor | None
    tile_mass: Tensor | None
    retained_tiles: Tensor | None


def score(
    head: Head, plan: Plan, wanted: Statistics, memory: Tensor, order: Tensor | None = None
) -> Scores:
    """Walk all tiles, retaining in `memory` (flat bytes of the plan's size) those that fit.

    order: ``[V]`` the vocabulary in the order of the walk, for a sparse plan; None for a dense one.
    """
    assert plan.precision == head.precision and plan.sparse == (order is not None)
    buffer = RetainedBuffer(plan, memory, head.rows)
    slots = buffer.slots()
    buffer.zero_between(slots)
    states = _initial_states(head, plan, wanted)
    used = _walk(head, plan, slots, states, order)
    buffer.zero_unused(used)
    count(rows_scored=head.rows, gemm_flops=2 * head.rows * head.weight.numel())
    retained = sum(slot is not None for slot in used)
    return _finish(states, plan.vocabulary, retained if plan.sparse else None)


def _walk(
    head: Head,
    plan: Plan,
    slots: list[RetainedSlot | None],
    states: RowState,
    order: Tensor | None,
) -> list[RetainedSlot | None]:
    """Fold every tile into the statistics of its part; gives the slots that were used.

    In a sparse pass the tiles are taken to hold less and less probability: once one is not worth
    retaining, no later one is.
    """
    used: list[RetainedSlot | None] = [None] * len(plan.tiles)
    if not head.rows:
        return used
    module = backends.get(plan.backend)
    head, tiles = sparsity.arranged(head, plan, order)
    parts = _parts(states, len(tiles))
    scratch = module.scratch(head, plan.width, backward=False)
    module.begin(head, scratch, backward=False)
    retain = True
    for number, tile in enumerate(tiles):
        used[number] = slots[number] if retain else None
        module.score_tile(head, tile, parts[number], used[number], scratch)
        if used[number] is not None and plan.reconsiders(number):
            share = sparsity.returning_share(states, number, plan.tolerance)
            retain = plan.worth_retaining(share)
    return used


def _initial_states(head: Head, plan: Plan, wanted: Statistics) -> RowState:
    """Statistics of the parts of the vocabulary, ``[parts, N]``; one target logit.

    Each tile is a part of its own in a sparse pass, which asks for the mass of every tile.
    """
    parts = len(plan.tiles) if plan.sparse else 1

    def full(value: float, want: bool = True) -> Tensor | None:
        if not want:
            return None
        shape, dtype = (parts, head.rows), plan.precision.accumulate
        return torch.full(shape, value, dtype=dtype, device=head.hidden.device)

    row_max, row_sum = full(-torch.inf), full(0.0)
    assert row_max is not None and row_sum is not None
    return RowState(
        row_max,
        row_sum,
        target_logit=row_max.new_full((1, head.rows), torch.nan),
        entropy_sum=full(0.0, wanted.entropy),
        sum_sq_probs=full(0.0, wanted.square_sum),
        logit_sum=full(0.0, wanted.mean),
    )


def _parts(states: RowState, tiles: int) -> list[RowState]:
    """For each tile the statistics of its part, which are views."""

    def part(values: Tensor | None, number: int) -> Tensor | None:
        return None if values is None else values[number]

    own = [
        RowState(
            states.row_max[number],
            states.row_sum[number],
            states.target_logit[0],
            part(states.entropy_sum, number),
            part(states.sum_sq_probs, number),
            part(states.logit_sum, number),
        )
        for number in range(len(states.row_max))
    ]
    return own if len(own) == tiles else own * tiles


def _finish(states: RowState, vocabulary: int, retained_tiles: int | None) -> Scores:
    """Merge the parts; see `Scores`."""
    row_max, target_logit = states.row_max.amax(0), states.target_logit[0]
    # A part that is all -inf has no probability: its shift does not matter.
    moved = (states.row_max - row_max).masked_fill(states.row_max == -torch.inf, -torch.inf)
    decay = moved.exp()
    sums = states.row_sum * decay
    row_sum = sums.sum(0)
    log_sum = row_sum.log()
    entropy = log_sum_sq = mean = None
    if states.entropy_sum is not None:
        shifted = states.entropy_sum * decay + (sums * moved).masked_fill(sums == 0, 0.0)
        entropy = log_sum - shifted.sum(0) / row_sum
    if states.sum_sq_probs is not None:
        log_sum_sq = (states.sum_sq_probs * decay * decay).sum(0).log() - 2 * log_sum
    if states.logit_sum is not None:
        mean = states.logit_sum.sum(0) / vocabulary
    return Scores(
        logp=(target_logit - row_max) - log_sum,
        row_max=row_max,
        log_sum=log_sum,
        is_top1=target_logit >= row_max,
        entropy=entropy,
        log_sum_sq_probs=log_sum_sq,
        mean_logits=mean,
        tile_mass=None if retained_tiles is None else (sums / row_sum).T.contiguous(),
        retained_tiles=None
        if retained_tiles is None
        else torch.full((1,), retained_tiles, device=row_sum.device),
    )
