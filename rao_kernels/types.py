"""Plain records that cross layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypedDict

import torch
from torch import Tensor


@dataclass
class WordOrder:
    """A word order learnt over the calls of a run; pass the same one as `word_order` each time.

    The order of a call comes from a few of its own rows. Which words are likely at all, it takes
    from what earlier calls showed besides, as from one row more: calls with few rows keep up to a
    sixth fewer pairs of row and tile by that, long ones next to none fewer.

    affinity: ``[V]`` fp32, how far forward each word belongs: an exponential mean over calls.
        It is all there is to save with a checkpoint; None before the first call.
    """

    RATE: ClassVar[float] = 0.1
    affinity: Tensor | None = None

    def observe(self, affinity: Tensor, rows: int) -> Tensor:
        """Take in ``[V]``, the mean over `rows` rows of a call, and give what to order that call
        by."""
        past = affinity if self.affinity is None else self.affinity.to(affinity.device)
        self.affinity = torch.lerp(past, affinity, self.RATE)
        return torch.lerp(affinity, past, 1.0 / (rows + 1))


class EngineOptions(TypedDict, total=False):
    """Options of the one op, accepted by every entry that runs it.

    grad_tolerance: probability each row may drop in backward; 0.0 (default) is exact. The change
        of the gradients is bounded, see `rao_kernels.engine.sparsity`.
    workspace_bytes: bytes of logits kept between forward and backward. 0 keeps nothing and
        recomputes; anything between 0 and everything is valid. None (default) keeps everything up
        to 1 GiB, and nothing of half-precision logits that a softcap bends, where keeping them
        would cost accuracy. Under `grad_tolerance` a CPU keeps no more tiles, whatever fits, once
        too few rows come back to one to pay for it (asked after 1, 2, 4, 8 ... tiles; none pays
        beyond the first where D is below 300).
    word_order: ``[V]`` int64 permutation in which the vocabulary is cut into tiles where
        `grad_tolerance` is above 0, or a `WordOrder` that learns one over calls; by default it is
        learnt from the rows at hand.
    backend: name of a backend, or None (default) for the best that supports the problem.
    """

    grad_tolerance: float
    workspace_bytes: int | None
    word_order: Tensor | WordOrder | None
    backend: str | None


@dataclass(frozen=True)
class TokenStats:
    """Per-token results of `linear_token_stats`, each shaped like the targets; None = not asked.

    logps: log-probability of the target. entropy: of the token distribution, nats.
    log_sum_sq_probs: ``log(sum_v p_v^2)``. mean_logits: mean over the vocabulary.
    is_top1: whether no word has a larger logit than the target. lse: log-sum-exp of the logits.
    """

    logps: Tensor
    entropy: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    lse: Tensor | None = None


@dataclass(frozen=True)
class LossOutput:
    """What every loss returns.

    loss: scalar, differentiable. values: unreduced, what the weights of the loss are for: one per
        unit, or finer (RAO: one per response, each weighing 1 / responses of its prompt).
    metrics: detached scalars by name. parts: of a weighted sum of losses, each one's own output.
    """

    loss: Tensor
    values: Tensor
    metrics: dict[str, Tensor]
    parts: tuple[LossOutput, ...] = ()
