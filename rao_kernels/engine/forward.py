"""The forward walk over vocabulary tiles. Legend: N rows, V vocabulary, D hidden size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import backends
from ..backends import Head, RetainedSlot, RowState, Tile
from . import plan, sparsity
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
    head: Head,
    backend: str,
    wanted: Statistics,
    memory: Tensor,
    order: Tensor | None = None,
    tolerance: float = 0.0,
) -> Scores:
    """Walk all tiles, retaining in `memory` (flat bytes, possibly empty) those that fit.

    order: ``[V]`` the words in the order of the walk, taken to be heaviest first, for a sparse
    backward of `tolerance`, which retains only the tiles worth it; None: as they are.
    """
    sparse = order is not None
    traits = backends.get(backend).traits(head.hidden.device.type)
    cut = plan.tiles(head.weight.shape[0], traits, sparse=sparse)
    buffer = plan.RetainedBuffer(backend, memory, head.rows, head.hidden.dtype)
    slots = buffer.slots(cut)
    buffer.zero_between(slots)
    states = _initial_states(head, wanted, len(cut) if sparse else 1)
    if order is None:
        _dense_walk(head, backend, cut, slots, states)
    else:
        slots = _sparse_walk(head, backend, cut, slots, states, order, tolerance)
    buffer.zero_unused(slots)
    count(rows_scored=head.rows, gemm_flops=2 * head.rows * head.weight.numel())
    retained = sum(slot is not None for slot in slots)
    return _finish(states, head.weight.shape[0], retained if sparse else None)


def _dense_walk(
    head: Head,
    backend: str,
    cut: list[Tile],
    slots: list[RetainedSlot | None],
    states: RowState,
) -> None:
    """Every tile into the same statistics."""
    if head.rows:
        module, state = backends.get(backend), _row(states, 0)
        scratch = module.scratch(head, cut[0].width, backward=False)
        module.begin(head, scratch, backward=False)
        for tile, slot in zip(cut, slots, strict=True):
            module.score_tile(head, tile, state, slot, scratch)


def _sparse_walk(
    head: Head,
    backend: str,
    cut: list[Tile],
    slots: list[RetainedSlot | None],
    states: RowState,
    order: Tensor,
    tolerance: float,
) -> list[RetainedSlot | None]:
    """Every tile into statistics of its own; gives the slots that were used.

    The tiles are taken to be lighter and lighter: once one is not worth its slot, none is.
    """
    used: list[RetainedSlot | None] = [None] * len(cut)
    if not head.rows:
        return used
    head, module = sparsity.in_order(head, order), backends.get(backend)
    traits = module.traits(head.hidden.device.type)
    scratch = module.scratch(head, cut[0].width, backward=False)
    module.begin(head, scratch, backward=False)
    keep = True
    for number, tile in enumerate(sparsity.with_words(cut, order)):
        state = _row(states, number)
        used[number] = slots[number] if keep else None
        module.score_tile(head, tile, state, used[number], scratch)
        if used[number] is not None and plan.is_reconsidered(number, traits):
            share = sparsity.returning_share(states, number, tolerance)
            keep = plan.worth_retaining(share, head.hidden.shape[1], traits)
    return used


def _initial_states(head: Head, wanted: Statistics, count: int) -> RowState:
    """Statistics of `count` parts of the vocabulary, each ``[count, N]``; one target logit."""

    def full(value: float, want: bool = True) -> Tensor | None:
        if not want:
            return None
        shape = (count, head.rows)
        return torch.full(shape, value, dtype=head.accumulator, device=head.hidden.device)

    row_max, row_sum = full(-torch.inf), full(0.0)
    assert row_max is not None and row_sum is not None
    return RowState(
        row_max,
        row_sum,
        target_logit=row_max.new_full((1, head.rows), torch.nan),
        entropy_sum=full(0.0, wanted.entropy),
        square_sum=full(0.0, wanted.square_sum),
        logit_sum=full(0.0, wanted.mean),
    )


def _row(states: RowState, number: int) -> RowState:
    """The statistics of one part."""

    def part(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[number]

    return RowState(
        states.row_max[number],
        states.row_sum[number],
        states.target_logit[0],
        part(states.entropy_sum),
        part(states.square_sum),
        part(states.logit_sum),
    )


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
    if states.square_sum is not None:
        log_sum_sq = (states.square_sum * decay * decay).sum(0).log() - 2 * log_sum
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
