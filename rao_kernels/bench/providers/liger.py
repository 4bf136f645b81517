"""Liger-Kernel: chunked losses (anywhere), fused linear cross-entropies (on a GPU)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..cases import OP
from ..problems import Problem
from ._interface import Call, Function, LogProbs, Provider, Unsupported, differentiated

PACKAGES = ("liger-kernel", "triton")
SCALED_PACKAGES = (*PACKAGES, "nvidia-cutlass-dsl", "apache-tvm-ffi")
IGNORE = -100


def _labels(problem: Problem) -> Tensor:
    """Return next tokens ``[S, T - 1]``, -100 where they belong to the prompt."""
    assert problem.input_ids is not None and problem.completion_mask is not None
    ids = problem.input_ids.masked_fill(~problem.completion_mask, IGNORE)
    return ids[:, 1:].contiguous()


def _sorted(tensor: Tensor) -> Tensor:
    """Put preferred sequences first, as Liger's pair losses take them; here they alternate."""
    return torch.cat([tensor[::2], tensor[1::2]])


def _pair_loss(module: Callable[..., tuple[Tensor, ...]], problem: Problem) -> Function:
    labels = _sorted(_labels(problem))
    return lambda hidden, weight: module(weight, _sorted(hidden[:, :-1]), labels)[0]


def _dpo(problem: Problem) -> Function:
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    return _pair_loss(LigerFusedLinearDPOLoss(**problem.hyper, use_ref_model=False), problem)


def _simpo(problem: Problem) -> Function:
    from liger_kernel.chunked_loss import LigerFusedLinearSimPOLoss

    return _pair_loss(LigerFusedLinearSimPOLoss(**problem.hyper, compute_nll_loss=False), problem)


def _kto(problem: Problem) -> Function:
    from liger_kernel.chunked_loss import LigerFusedLinearKTOLoss

    module, labels = LigerFusedLinearKTOLoss(**problem.hyper), _labels(problem)
    preferred = problem.loss_inputs["preferred"]
    kl = problem.loss_inputs["kl_logps"].mean()

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        shifted = hidden[:, :-1]
        value: Tensor = module(shifted, weight, labels, preference_labels=preferred, kl=kl)[0]
        return value

    return loss


def _grpo(problem: Problem) -> Function:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    module = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="grpo")
    assert problem.input_ids is not None
    labels = _labels(problem)
    mask, ids = (labels != IGNORE).int(), problem.input_ids[:, 1:].contiguous()
    inputs = problem.loss_inputs
    old = inputs["old_token_logps"][:, :-1].contiguous()

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        shifted = hidden[:, :-1]
        value: Tensor = module(
            shifted, weight, ids, mask, inputs["advantages"], old_per_token_logps=old
        )[0]
        return value

    return loss


LOSSES = {"sigmoid": _dpo, "simpo": _simpo, "kto": _kto, "grpo": _grpo}


def _prepare_losses(problem: Problem, direction: str) -> Call:
    if problem.task not in LOSSES:
        asked = "per-token log-probs" if problem.task == OP else f"chunked {problem.task} loss"
        raise Unsupported(f"has no {asked}")
    return differentiated(LOSSES[problem.task](problem), problem, direction)


def _cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, reduction: str = "none"
) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    found: Tensor = LigerFusedLinearCrossEntropyLoss(reduction=reduction, softcap=softcap)(
        weight, hidden, targets
    )
    return found


def _prepare_cross_entropy(problem: Problem, direction: str) -> Call:
    if problem.task != "sft":
        run = LogProbs(lambda *given: -_cross_entropy(*given))
        return run.prepare(problem, direction)
    batch = problem.batch

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        rows = hidden.flatten(0, 1)[batch.response_rows]
        return _cross_entropy(rows, weight, batch.response_targets, None, "mean")

    return differentiated(loss, problem, direction)


def _scaled_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None
) -> Tensor:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (
        LigerFusedLinearScaledCrossEntropyFunction as Function,
    )

    found: Tensor = Function.apply(hidden, weight, targets)
    return -found


def _prepare_scaled(problem: Problem, direction: str) -> Call:
    """Refuse what its Hopper kernels do not do; elsewhere it is a loop over torch's operators."""
    if problem.softcap is not None:
        raise Unsupported("no softcap")
    if problem.weight.dtype != torch.bfloat16:
        raise Unsupported(f"its kernels compute in bf16, not in {problem.weight.dtype}")
    device = problem.weight.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        raise Unsupported("its kernels are for compute capability 9.0")
    return LogProbs(_scaled_cross_entropy).prepare(problem, direction)


def providers(device: torch.device) -> list[Provider]:
    found = [Provider("Liger chunked losses", _prepare_losses, PACKAGES)]
    if device.type == "cuda":
        found += [
            Provider("Liger cross-entropy", _prepare_cross_entropy, PACKAGES),
            Provider("Liger scaled cross-entropy", _prepare_scaled, SCALED_PACKAGES),
        ]
    return found
