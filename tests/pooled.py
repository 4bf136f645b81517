"""Buffers of the pool of large CPU buffers, and a head small enough for tests that uses it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rao_kernels import _memory, linear_logprobs

from . import seeds

CPU = torch.device("cpu")
KIB = 1 << 10
MIB = 1 << 20


def buffer(nbytes: int = MIB) -> Tensor:
    return _memory.empty((nbytes,), torch.uint8, CPU)


def free() -> list[int]:
    return [len(mapping) for mapping in _memory._free]


class Head:
    """A head whose retained buffer, dweight, dhidden and scratch are all above 64 KiB."""

    def __init__(self) -> None:
        generator = seeds.generator()
        self.hidden = torch.randn(96, 256, generator=generator).requires_grad_()
        self.weight = nn.Parameter(torch.randn(6000, 256, generator=generator) / 16)
        self.targets = torch.randint(0, 6000, (96,), generator=generator)

    def loss(self, **options: object) -> Tensor:
        return -linear_logprobs(self.hidden, self.weight, self.targets, **options).mean()

    def gradients(self, **options: object) -> list[Tensor]:
        return list(torch.autograd.grad(self.loss(**options), [self.hidden, self.weight]))
