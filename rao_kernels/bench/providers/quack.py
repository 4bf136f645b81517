"""Dao-AILab's quack: a scalar cross-entropy on Hopper and Blackwell."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problems import Problem
from ._interface import Call, Provider, Unsupported, differentiated

PACKAGES = ("quack-kernels", "nvidia-cutlass-dsl", "apache-tvm-ffi")


def _prepare(problem: Problem, direction: str) -> Call:
    if problem.task != "sft":
        raise Unsupported("has the mean or the sum of log-probs, without a gradient of each")
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    batch = problem.batch

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        rows = hidden.flatten(0, 1)[batch.response_rows]
        value: Tensor = chunked_linear_cross_entropy(
            rows, weight, batch.response_targets, reduction="mean"
        )
        return value

    return differentiated(loss, problem, direction)


def providers(device: torch.device) -> list[Provider]:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return []
    return [Provider("quack", _prepare, PACKAGES)]
