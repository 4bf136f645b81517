"""Public functions of the op: token log-probs from hidden states and an output head."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from ..errors import InputError
from ..types import EngineOptions, TokenStats
from . import checks
from .operators import Forward, Results, linear_logprobs_op

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
        hidden: ``[..., D]`` hidden states; float64, float32, bfloat16 or float16.
        weight: ``[V, D]`` output head in the dtype of `hidden` (under autocast any float dtype but
            float64).
        targets: ``[...]`` int64 token ids in ``[0, V)``, or `ignore_index`.
        bias: ``[V]``, added before softcap and scale.
        logit_scale: factor of the logits; a temperature T is ``1 / T``.
        logit_softcap: bound of the tanh softcap, or None.
        ignore_index: target of rows to leave out of every product; their result is 0.0. None trusts
            all targets: one outside ``[0, V)`` gives NaN, and nothing is read on the host but once
            in backward where `grad_tolerance` is above 0, and once to check a `vocab_order`.
        options: see `EngineOptions`.

    Returns:
        Log-probs in nats, shaped like `targets`, never above 0; float32 (float64 for float64
        operands). Differentiable once in `hidden`, `weight` and `bias`.

    Raises:
        InputError: an argument has the wrong shape, dtype, device or value.
        BackendError: the backend asked for cannot run.

    Example:
        >>> hidden = torch.randn(4, 8, requires_grad=True)
        >>> weight = torch.randn(100, 8, requires_grad=True)
        >>> logps = linear_logprobs(hidden, weight, torch.tensor([3, 14, -100, 99]))
        >>> logps.sum().backward()
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
    """Log-probability of each target and entropy of each row's distribution, in one pass.

    Arguments and errors are those of `linear_logprobs`.

    Returns:
        ``(logps, entropy)`` in nats, shaped like `targets`, both differentiable; 0.0 where ignored.
    """
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
    """Log-probability of each target and further statistics of each row, in one pass.

    Args:
        stats: names of the fields of `TokenStats` to fill; the others stay None. The rest of the
            arguments, and the errors, are those of `linear_logprobs`.

    Returns:
        `TokenStats`, each field shaped like `targets`. `logps`, `entropy` and `lse` are
        differentiable, the others are not.
    """
    if unknown := set(stats) - set(STATS):
        raise InputError("stats", f"names among {STATS}", sorted(unknown))
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
    options = checks.checked_options(options, weight)
    inputs = (hidden, weight) if bias is None else (hidden, weight, bias)
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    call = Forward(
        hidden=hidden.reshape(-1, hidden.shape[-1]),
        weight=weight,
        bias=bias,
        targets=targets.reshape(-1),
        scale=float(logit_scale),
        softcap=None if logit_softcap is None else float(logit_softcap),
        ignore_index=ignore_index,
        compute_dtype=compute_dtype,
        grad_tolerance=options.get("grad_tolerance", 0.0) if differentiable else 0.0,
        vocab_order=options.get("vocab_order"),
        workspace_bytes=options.get("workspace_bytes") if differentiable else 0,
        backend=options.get("backend") or "",
        with_entropy="entropy" in stats,
        with_log_sum_sq_probs="log_sum_sq_probs" in stats,
        with_mean_logits="mean_logits" in stats,
    )
    found = Results(*linear_logprobs_op(*call))

    def asked(name: str, values: Tensor) -> Tensor | None:
        return values.view(targets.shape) if name in stats else None

    return TokenStats(
        logps=found.logp.view(targets.shape),
        entropy=asked("entropy", found.entropy),
        log_sum_sq_probs=asked("log_sum_sq_probs", found.log_sum_sq_probs),
        mean_logits=asked("mean_logits", found.mean_logits),
        is_top1=asked("is_top1", found.is_top1),
        lse=(found.row_max + found.log_sum).view(targets.shape) if "lse" in stats else None,
    )
