"""The forward walk over vocabulary tiles. Legend: N rows, V vocabulary, D hidden size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import backends
from ..backends import Head, RowState
from . import plan
from .work import count


@dataclass(frozen=True)
class Statistics:
    """Which optional row statistics a pass collects."""

    entropy: bool = False
    square_sum: bool = False
    mean: bool = False


@dataclass(frozen=True)
class Scores:
    """Results of a forward pass, each ``[N]`` in the accumulator dtype; None = not collected.

    ``logp = (target_logit - row_max) - log_sum``: the maximum and the log of the sum stay apart,
    because one rounded lse loses what rows with a peaked softmax need.
    """

    logp: Tensor
    row_max: Tensor
    log_sum: Tensor
    is_top1: Tensor
    entropy: Tensor | None
    log_sum_sq_probs: Tensor | None
    mean_logits: Tensor | None


def score(head: Head, backend: str, wanted: Statistics, memory: Tensor) -> Scores:
    """Walk all tiles, retaining in `memory` (flat bytes, possibly empty) those that fit."""
    module = backends.get(backend)
    cut = plan.tiles(head.weight.shape[0], head.hidden.device.type)
    buffer = plan.RetainedBuffer(memory, head.rows, head.hidden.dtype)
    state = _initial_state(head, wanted)
    if head.rows:
        scratch = module.scratch(head, cut[0].width, backward=False)
        for tile, slot in zip(cut, buffer.slots(cut), strict=True):
            module.score_tile(head, tile, state, slot, scratch)
    buffer.zero_unused(cut)
    count(rows_scored=head.rows, gemm_flops=2 * head.rows * head.weight.numel())
    return _finish(state, head.weight.shape[0])


def _initial_state(head: Head, wanted: Statistics) -> RowState:
    def full(value: float, want: bool = True) -> Tensor | None:
        if not want:
            return None
        return torch.full((head.rows,), value, dtype=head.accumulator, device=head.hidden.device)

    row_max, row_sum, target_logit = full(-torch.inf), full(0.0), full(torch.nan)
    assert row_max is not None and row_sum is not None and target_logit is not None
    return RowState(
        row_max,
        row_sum,
        target_logit,
        entropy_sum=full(0.0, wanted.entropy),
        square_sum=full(0.0, wanted.square_sum),
        logit_sum=full(0.0, wanted.mean),
    )


def _finish(state: RowState, vocabulary: int) -> Scores:
    log_sum = state.row_sum.log()
    entropy = log_sum_sq = mean = None
    if state.entropy_sum is not None:
        entropy = log_sum - state.entropy_sum / state.row_sum
    if state.square_sum is not None:
        log_sum_sq = state.square_sum.log() - 2 * log_sum
    if state.logit_sum is not None:
        mean = state.logit_sum / vocabulary
    return Scores(
        logp=(state.target_logit - state.row_max) - log_sum,
        row_max=state.row_max,
        log_sum=log_sum,
        is_top1=state.target_logit >= state.row_max,
        entropy=entropy,
        log_sum_sq_probs=log_sum_sq,
        mean_logits=mean,
    )
