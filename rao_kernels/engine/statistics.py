"""Row statistics of a forward pass: initial state, the state of each tile, final results."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import Head, RowState
from .plan import Plan


@dataclass(frozen=True)
class Statistics:
    """Optional row statistics that a pass collects; see `Scores`."""

    entropy: bool = False
    log_sum_sq_probs: bool = False
    mean_logits: bool = False


@dataclass(frozen=True)
class Scores:
    """Results of a forward pass, each ``[N]`` in the accumulator dtype but for the bool `is_top1`;
    None: not collected.

    ``logp = (target_logit - row_max) - log_sum``: the maximum and the log of the sum are kept
    apart, because a single rounded lse loses the digits that rows with a peaked softmax need.
    tile_mass: ``[N, K]``, probability mass of each of the K tiles; None for a dense plan.
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


def initial_states(head: Head, plan: Plan, wanted: Statistics) -> RowState:
    """Return statistics ``[parts, N]`` of the parts of the vocabulary and target logits ``[1, N]``.

    Each tile is a part of its own in a sparse pass, which needs the probability mass of every
    tile; a dense pass has one part.
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
        sum_sq_probs=full(0.0, wanted.log_sum_sq_probs),
        logit_sum=full(0.0, wanted.mean_logits),
    )


def states_of_tiles(states: RowState, tiles: int) -> list[RowState]:
    """Return for each tile the statistics of its part, as views."""

    def part(values: Tensor | None, number: int) -> Tensor | None:
        return None if values is None else values[number]

    parts = [
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
    return parts if len(parts) == tiles else parts * tiles


def finish(states: RowState, vocabulary: int, retained_tiles: int | None) -> Scores:
    """Merge the parts into the results of the pass. retained_tiles: None for a dense plan."""
    row_max, target_logit = states.row_max.amax(0), states.target_logit[0]
    # A part that is all -inf has no probability: its shift does not matter.
    shift = (states.row_max - row_max).masked_fill(states.row_max == -torch.inf, -torch.inf)
    decay = shift.exp()
    sums = states.row_sum * decay
    row_sum = sums.sum(0)
    log_sum = row_sum.log()
    entropy = log_sum_sq_probs = mean_logits = None
    if states.entropy_sum is not None:
        shifted = states.entropy_sum * decay + (sums * shift).masked_fill(sums == 0, 0.0)
        entropy = log_sum - shifted.sum(0) / row_sum
    if states.sum_sq_probs is not None:
        log_sum_sq_probs = (states.sum_sq_probs * decay * decay).sum(0).log() - 2 * log_sum
    if states.logit_sum is not None:
        mean_logits = states.logit_sum.sum(0) / vocabulary
    return Scores(
        logp=(target_logit - row_max) - log_sum,
        row_max=row_max,
        log_sum=log_sum,
        is_top1=target_logit >= row_max,
        entropy=entropy,
        log_sum_sq_probs=log_sum_sq_probs,
        mean_logits=mean_logits,
        tile_mass=None if retained_tiles is None else (sums / row_sum).T.contiguous(),
        retained_tiles=None
        if retained_tiles is None
        else torch.full((1,), retained_tiles, device=row_sum.device),
    )
