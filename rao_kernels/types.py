"""Data classes that several layers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor


class EngineOptions(TypedDict, total=False):
    """Options of the op, accepted by every function that runs it.

    grad_tolerance: probability mass that each row may drop in backward; 0.0 (default) is exact.
        The change of the gradients is bounded, see `rao_kernels.engine.sparsity`.
    workspace_bytes: bytes of logits kept from forward to backward; the rest is recomputed. Any
        value from 0 on is valid. None (default) keeps everything up to 1 GiB, and nothing of
        half-precision logits with a softcap, whose derivative would magnify their rounding. Under
        `grad_tolerance` a CPU stops keeping tiles once too few rows need them again: it decides
        after 1, 2, 4, 8 ... tiles, and stops after the first where D is below 300 (AMX: 600).
    vocab_order: ``[V]`` int64 permutation, the order in which the vocabulary is cut into tiles
        where `grad_tolerance` is above 0; None (default) estimates one from the rows of the call.
    backend: name of a backend, or None (default) for the best that supports the problem.
    word_order: former name of `vocab_order`; deprecated.
    """

    grad_tolerance: float
    workspace_bytes: int | None
    vocab_order: Tensor | None
    backend: str | None
    word_order: Tensor | None


@dataclass(frozen=True)
class TokenStats:
    """Per-token results of `linear_token_stats`, each shaped like the targets; None: not requested.

    logps: log-probability of the target. entropy: of the token distribution, nats.
    log_sum_sq_probs: ``log(sum_v p_v^2)``. mean_logits: mean logit of the vocabulary.
    is_top1: True where no entry has a larger logit than the target. lse: log-sum-exp of the logits.
    """

    logps: Tensor
    entropy: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    lse: Tensor | None = None


@dataclass(frozen=True)
class LossOutput:
    """Result of every loss.

    loss: scalar, differentiable. values: unreduced loss values, differentiable: one per unit of the
        loss, or finer (RAO: one per response, weighted by 1 / responses of its prompt).
    metrics: detached scalars by name. parts: the outputs of the terms of a weighted sum of losses;
        empty otherwise.
    """

    loss: Tensor
    values: Tensor
    metrics: dict[str, Tensor]
    parts: tuple[LossOutput, ...] = ()
