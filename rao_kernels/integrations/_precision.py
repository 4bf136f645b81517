"""Dtype and lifetime of a trainer's tensors, for integrations that call the op in a forward."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast_to_half(hidden: Tensor) -> AbstractContextManager[object]:
    """Return autocast to the dtype of half-precision `hidden` where autocast is off.

    The op then multiplies in that dtype, whatever the dtype of the head's weight is, and each
    gradient has the dtype of its tensor. With autocast on, or other dtypes, nothing changes.
    """
    device = hidden.device.type
    if hidden.dtype not in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, hidden.dtype)


def head_tensor(tensor: Tensor, hidden: Tensor) -> Tensor:
    """Return the head's weight or bias for the op: in the dtype of `hidden`, valid in backward.

    Under autocast the dtype stays. A parameter of ZeRO-3 is copied where gradients are recorded:
    its memory is released before backward needs it.
    """
    if not torch.is_autocast_enabled(hidden.device.type):
        tensor = tensor.to(hidden.dtype)
    if hasattr(tensor, "ds_id") and torch.is_grad_enabled():
        return tensor.clone()
    return tensor
