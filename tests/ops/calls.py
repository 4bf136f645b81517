"""Arguments of the operators for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from rao_kernels.ops.signatures import Backward, Forward, Results

from ..oracle import Problem


def forward_call(problem: Problem, **changes: object) -> Forward:
    """Every statistic of a problem, on `eager`."""
    call = Forward(
        hidden=problem.hidden,
        weight=problem.weight,
        bias=problem.bias,
        targets=problem.targets,
        scale=problem.logit_scale,
        softcap=problem.logit_softcap,
        ignore_index=-100,
        compute_dtype=problem.hidden.dtype,
        grad_tolerance=0.0,
        vocab_order=None,
        workspace_bytes=None,
        backend="eager",
        with_entropy=True,
        with_log_sum_sq_probs=True,
        with_mean_logits=True,
        with_is_top1=True,
    )
    return call._replace(**changes)


def backward_call(forward: Forward, results: Results, **changes: object) -> Backward:
    """Every gradient from an upstream gradient of the log-probs and the entropy."""
    upstream: dict[str, Tensor | None] = {"dlogp": torch.ones_like(results.logp), "dlog_sum": None}
    upstream["dentropy"] = torch.ones_like(results.logp) if forward.with_entropy else None
    wanted = {"need_dhidden": True, "need_dweight": True, "need_dbias": forward.bias is not None}
    given = {**forward._asdict(), **results._asdict(), **upstream, **wanted, **changes}
    detached = {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in given.items()
    }
    return Backward(*(detached[name] for name in Backward._fields))
