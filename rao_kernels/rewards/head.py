"""The head of a reward model, computed in fp32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fp32Head(nn.Linear):
    """A linear layer that computes in fp32, whatever its weight's dtype and autocast say.

    In bf16 a reward has three digits, and most pairs of rewards near each other would tie.
    """

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float(), bias)


def use_fp32_head(model: nn.Module) -> None:
    """Make the model's layers with one output compute in fp32, in place."""
    for module in model.modules():
        if type(module) is nn.Linear and module.out_features == 1:
            module.__class__ = Fp32Head
