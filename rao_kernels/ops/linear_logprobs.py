"""The one differentiable op: token log-probs from hidden states and an output head."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from ..backends import Head
from ..errors import InputError
from ..types import EngineOptions, TokenStats, WordOrder
from . import checks
from . import word_order as word_orders
from .operators import linear_logprobs_op

STATS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "lse")


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    ignore_index: int | None = -100,
    **options: Unpack[EngineOptions],
) -> Tensor:
    """Log-probability of each target under ``softmax(logits)``, without holding the logits.

    ``logits = softcap * tanh((hidden @ weight.T + bias) / softcap) * logit_scale``

    Args:
        hidden: ``[..., D]`` float64, float32, bfloat16 or float16.
        weight: ``[V, D]`` in the dtype of `hidden` (under autocast any float dtype but float64).
        targets: ``[...]`` int64 in ``[0, V)`` or `ignore_index`.
        bias: ``[V]``, added before softcap and scale.
        logit_scale: multiplies the logits; a temperature T is ``1 / T``.
        logit_softcap: bound of the tanh softcap, or None.
        ignore_index: target of rows that are left out of every product; their result is 0.0.
            None: rows are already selected and targets trusted, and a target outside ``[0, V)``
            gives NaN. Nothing is read on the host then, but once in backward where
            `grad_tolerance` is above 0, and once more to check a `word_order` that is a tensor.
        options: see `EngineOptions`.

    Returns:
        Log-probs shaped like `targets`, never above 0; float32 (float64 for float64 operands).
        Differentiable in `hidden`, `weight` and `bias`, once.

    Raises:
        InputError: an argument has the wrong shape, dtype, device or value.
        BackendError: the backend asked for cannot run.
    """
    scores = _scores(
        hidden, weight, targets, bias, logit_scale, logit_softcap, ignore_index, (), options
    )
    return scores.logps


def linear_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    ignore_index: int | None = -100,
    **options: Unpack[EngineOptions],
) -> tuple[Tensor, Tensor]:
    """`linear_logprobs` and the entropy (nats) of each row's distribution; both differentiable."""
    scores = _scores(
        hidden,
        weight,
        targets,
        bias,
        logit_scale,
        logit_softcap,
        ignore_index,
        ("entropy",),
        options,
    )
    assert scores.entropy is not None
    return scores.logps, scores.entropy


def linear_token_stats(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    ignore_index: int | None = -100,
    stats: tuple[str, ...] = STATS,
    **options: Unpack[EngineOptions],
) -> TokenStats:
    """`linear_logprobs` and the `stats` asked for, from the same pass; see `TokenStats`.

    `logps`, `entropy` and `lse` are differentiable, the others are not.
    """
    if unknown := set(stats) - set(STATS):
        raise InputError("stats", f"names out of {STATS}", sorted(unknown))
    return _scores(
        hidden, weight, targets, bias, logit_scale, logit_softcap, ignore_index, stats, options
    )


def _scores(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    logit_scale: float,
    logit_softcap: float | None,
    ignore_index: int | None,
    stats: tuple[str, ...],
    options: EngineOptions,
) -> TokenStats:
    compute_dtype = checks.compute_dtype(hidden)
    checks.check_tensors(hidden, weight, targets, bias, compute_dtype)
    checks.check_scalars(logit_scale, logit_softcap)
    checks.check_options(options, weight)
    flat = hidden.reshape(-1, hidden.shape[-1])
    inputs = (hidden, weight) if bias is None else (hidden, weight, bias)
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    tolerance = options.get("grad_tolerance", 0.0) if differentiable else 0.0
    workspace = options.get("workspace_bytes") if differentiable else 0
    flat_targets, scale = targets.reshape(-1), float(logit_scale)
    softcap = None if logit_softcap is None else float(logit_softcap)
    order, backend = options.get("word_order"), options.get("backend") or ""
    if isinstance(order, WordOrder):
        head = Head(flat, weight, bias, flat_targets, scale, softcap)
        order = word_orders.learn(order, head, ignore_index, compute_dtype, tolerance, backend)
    logp, row_max, log_sum, is_top1, entropy, log_sum_sq, mean, *_ = linear_logprobs_op(
        flat,
        weight,
        bias,
        flat_targets,
        scale,
        softcap,
        ignore_index,
        workspace,
        compute_dtype,
        "entropy" in stats,
        "log_sum_sq_probs" in stats,
        "mean_logits" in stats,
        tolerance,
        order,
        backend,
    )
    shape = targets.shape
    return TokenStats(
        logps=logp.view(shape),
        entropy=entropy.view(shape) if "entropy" in stats else None,
        log_sum_sq_probs=log_sum_sq.view(shape) if "log_sum_sq_probs" in stats else None,
        mean_logits=mean.view(shape) if "mean_logits" in stats else None,
        is_top1=is_top1.view(shape) if "is_top1" in stats else None,
        lse=(row_max + log_sum).view(shape) if "lse" in stats else None,
    )
