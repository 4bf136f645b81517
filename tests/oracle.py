"""The dense definition of the op in plain torch, independent of the package.

`dense` in float64 is the truth; in the operands' own dtype it is what plain torch users run today.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """A head problem with upstream gradients. `targets` may hold -100."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    dlogp: Tensor | None = None
    dentropy: Tensor | None = None
    dlse: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Problem:
        def cast(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().to(dtype)

        return replace(
            self, hidden=cast(self.hidden), weight=cast(self.weight), bias=cast(self.bias)
        )

    def keywords(self) -> dict[str, object]:
        return {
            "bias": self.bias,
            "logit_scale": self.logit_scale,
            "logit_softcap": self.logit_softcap,
        }


@dataclass(frozen=True)
class Answer:
    """Per-token results (0 where ignored) and gradients of
    ``sum(dlogp logps + dentropy entropy + dlse lse)``."""

    logps: Tensor
    entropy: Tensor
    lse: Tensor
    log_sum_sq_probs: Tensor
    mean_logits: Tensor
    is_top1: Tensor
    dhidden: Tensor
    dweight: Tensor
    dbias: Tensor | None


def dense_logits(problem: Problem) -> Tensor:
    z = problem.hidden @ problem.weight.T
    if problem.bias is not None:
        z = z + problem.bias
    if problem.logit_softcap is not None:
        z = problem.logit_softcap * torch.tanh(z / problem.logit_softcap)
    return z * problem.logit_scale


def dense(problem: Problem) -> Answer:
    """The answer by full logits, in the dtype of the operands; results widened to float64."""
    leaves = [problem.hidden, problem.weight, problem.bias]
    hidden, weight, bias = (
        None if leaf is None else leaf.detach().clone().requires_grad_() for leaf in leaves
    )
    z = dense_logits(replace(problem, hidden=hidden, weight=weight, bias=bias))
    keep = problem.targets != -100
    targets = problem.targets.clamp(min=0)
    log_p = torch.log_softmax(z.float() if z.dtype in (torch.bfloat16, torch.float16) else z, -1)
    p = log_p.exp()
    rows = {
        "logps": log_p.gather(-1, targets[..., None]).squeeze(-1),
        "entropy": -(p * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1),
        "lse": torch.logsumexp(z.to(log_p.dtype), -1),
    }
    rows = {name: torch.where(keep, values, 0.0) for name, values in rows.items()}
    total = sum(
        (gradient * rows[name]).sum()
        for name, gradient in (
            ("logps", problem.dlogp),
            ("entropy", problem.dentropy),
            ("lse", problem.dlse),
        )
        if gradient is not None
    )
    wanted = [leaf for leaf in (hidden, weight, bias) if leaf is not None]
    if isinstance(total, Tensor):
        gradients = torch.autograd.grad(total, wanted)
    else:
        gradients = tuple(torch.zeros_like(leaf) for leaf in wanted)
    z = z.detach().to(log_p.dtype)
    target_logit = z.gather(-1, targets[..., None]).squeeze(-1)
    return Answer(
        **{name: values.detach().double() for name, values in rows.items()},
        log_sum_sq_probs=torch.where(keep, torch.logsumexp(2 * log_p.detach(), -1), 0.0).double(),
        mean_logits=torch.where(keep, z.mean(-1), 0.0).double(),
        is_top1=keep & (target_logit >= z.amax(-1)),
        dhidden=gradients[0].double(),
        dweight=gradients[1].double(),
        dbias=gradients[2].double() if bias is not None else None,
    )
