"""Who is measured. A provider makes, for a case, a forward and a forward-and-backward call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from rao_kernels.ops import linear_logprobs
from rao_kernels.types import EngineOptions

from .cases import Case

Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Provider:
    """forward(case) gives log-probs; both(case) gives log-probs, dhidden and dweight."""

    name: str
    forward: Callable[[Case], Tensor]
    both: Callable[[Case], Gradients]
    is_floor: bool = False


def _through(logprobs: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple:
    def forward(case: Case) -> Tensor:
        with torch.no_grad():
            return logprobs(case.hidden, case.weight, case.targets)

    def both(case: Case) -> Gradients:
        hidden, weight = (t.detach().requires_grad_() for t in (case.hidden, case.weight))
        logps = logprobs(hidden, weight, case.targets)
        dhidden, dweight = torch.autograd.grad(logps, (hidden, weight), case.dlogp.to(logps.dtype))
        return logps.detach(), dhidden, dweight

    return forward, both


def bare_gemms() -> Provider:
    """The products any dense method needs, through the vendor's library, and nothing else."""
    kept: dict[int, Tensor] = {}

    def forward(case: Case) -> Tensor:
        return case.hidden @ case.weight.T

    def both(case: Case) -> Gradients:
        logits = forward(case)
        dz = kept.setdefault(id(case), torch.full_like(logits, 1e-3))
        return logits, dz @ case.weight, dz.T @ case.hidden

    return Provider("bare GEMMs", forward, both, is_floor=True)


def plain_torch() -> Provider:
    """Full logits, log_softmax in fp32, gather."""

    def logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        log_p = torch.log_softmax((hidden @ weight.T).float(), -1)
        return log_p.gather(1, targets[:, None]).squeeze(1)

    return Provider("plain torch", *_through(logprobs))


def ours(name: str, **options: Unpack[EngineOptions]) -> Provider:
    def logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return linear_logprobs(hidden, weight, targets, **options)

    return Provider(f"rao_kernels {name}", *_through(logprobs))


def default(dtype: torch.dtype) -> list[Provider]:
    """What 2^-9 drops is below bf16's own rounding, and far above fp32's."""
    dense = [
        bare_gemms(),
        plain_torch(),
        ours("retained", backend="cpu"),
        ours("recomputed", backend="cpu", workspace_bytes=0),
    ]
    if dtype != torch.bfloat16:
        return dense
    return [*dense, ours("sparse 2^-9", backend="cpu", grad_tolerance=2.0**-9)]
