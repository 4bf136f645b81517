"""Apple's cut-cross-entropy. On a CPU only its `torch_compile` implementation runs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ._interface import LogProbs, Provider

PACKAGES = ("cut-cross-entropy", "triton")


def _logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, *, impl: str
) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    found: Tensor = linear_cross_entropy(
        hidden, weight, targets, softcap=softcap, reduction="none", impl=impl
    )
    return -found


def providers(device: torch.device) -> list[Provider]:
    found = []
    for impl in ("cce", "torch_compile") if device.type == "cuda" else ("torch_compile",):
        run = LogProbs(partial(_logprobs, impl=impl))
        found.append(Provider(f"cut-cross-entropy {impl}", run.prepare, PACKAGES))
    return found
