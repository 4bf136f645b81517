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
    is_top1: bool = False


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
    is_top1: Tensor | None
    entropy: Tensor | None
    log_sum_sq_probs: Tensor | None
    mean_logits: Tensor | None
    tile_mass: Tensor | None
    retained_tiles: Tensor | None


def initial_states(head: Head, plan: Plan, wanted: Statistics) -> RowState:
    """Return statistics ``[parts, N]`` of the parts of the vocabulary and target logits ``[1, N]``.

    Each tile is a part of its own in a sparse pass, which needs the probability mass of every
    tile. A dense pass has one part, which its first tile writes; it is uninitialised.
    """
    parts = len(plan.tiles) if plan.sparse else 1

    def empty(parts: int = parts) -> Tensor:
        dtype = plan.precision.accumulate
        return torch.empty(parts, head.rows, dtype=dtype, device=head.hidden.device)

    states = RowState(
        row_max=empty(),
        row_sum=empty(),
        target_logit=empty(1),
        entropy_sum=empty() if wanted.entropy else None,
        sum_sq_probs=empty() if wanted.log_sum_sq_probs else None,
        logit_sum=empty() if wanted.mean_logits else None,
    )
    if plan.sparse:
        states.reset()
    return states


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


def finish(
    states: RowState, vocabulary: int, wanted: Statistics, retained_tiles: int | None
) -> Scores:
    """Return the results of the pass. retained_tiles: None for a dense plan."""
    part_sums, merged = _merge(states)
    row_max, row_sum, target_logit = merged.row_max, merged.row_sum, merged.target_logit
    log_sum = row_sum.log()
    entropy = log_sum_sq_probs = mean_logits = None
    if merged.entropy_sum is not None:
        entropy = log_sum - merged.entropy_sum / row_sum
    if merged.sum_sq_probs is not None:
        log_sum_sq_probs = merged.sum_sq_probs.log() - 2 * log_sum
    if merged.logit_sum is not None:
        mean_logits = merged.logit_sum / vocabulary
    return Scores(
        logp=(target_logit - row_max) - log_sum,
        row_max=row_max,
        log_sum=log_sum,
        is_top1=target_logit >= row_max if wanted.is_top1 else None,
        entropy=entropy,
        log_sum_sq_probs=log_sum_sq_probs,
        mean_logits=mean_logits,
        tile_mass=None if retained_tiles is None else (part_sums / row_sum).T.contiguous(),
        retained_tiles=None
        if retained_tiles is None
        else torch.full((1,), retained_tiles, device=row_sum.device),
    )


def _merge(states: RowState) -> tuple[Tensor, RowState]:
    """Return ``[parts, N]`` row sums relative to the rows' maxima, and the statistics of all parts
    together, ``[N]``."""
    if len(states.row_max) == 1:
        return states.row_sum, states_of_tiles(states, 1)[0]
    row_max = states.row_max.amax(0)
    # A part that is all -inf has no probability: its shift does not matter.
    shift = (states.row_max - row_max).masked_fill(states.row_max == -torch.inf, -torch.inf)
    decay = shift.exp()
    sums = states.row_sum * decay
    entropy_sum = sum_sq_probs = logit_sum = None
    if states.entropy_sum is not None:
        shifted = states.entropy_sum * decay + (sums * shift).masked_fill(sums == 0, 0.0)
        entropy_sum = shifted.sum(0)
    if states.sum_sq_probs is not None:
        sum_sq_probs = (states.sum_sq_probs * decay * decay).sum(0)
    if states.logit_sum is not None:
        logit_sum = states.logit_sum.sum(0)
    target_logit = states.target_logit[0]
    return sums, RowState(row_max, sums.sum(0), target_logit, entropy_sum, sum_sq_probs, logit_sum)
