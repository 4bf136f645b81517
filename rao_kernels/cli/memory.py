"""Memory of training: an estimate by formula, and the peak of this process."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .. import backends, engine
from ..train.base import RunTrainer
from ..train.model import run_dtype

# Values of the parameters' dtype that an optimizer keeps for each trained weight, by the beginning
# of its name; the first that fits counts.
_STATES = {
    "adamw_bnb_8bit": 0.5,
    "adamw_8bit": 0.5,
    "adamw_torch_8bit": 0.5,
    "adamw_torch_4bit": 0.25,
    "paged_adamw_8bit": 0.5,
    "adam": 2.0,
    "paged_adam": 2.0,
    "stable_adamw": 2.0,
    "adafactor": 0.0,
    "adagrad": 1.0,
    "rmsprop": 1.0,
    "lion_8bit": 0.25,
    "lion": 1.0,
    "sgd": 0.0,
}


def estimate(trainer: RunTrainer, reference: nn.Module | None, rows: int) -> dict[str, int | None]:
    """Return the bytes of what training keeps beside activations; None: not known.

    reference: the model that is the reference, or None.
    rows: positions of the largest micro-batch.
    """
    model: Any = trainer.model
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = _bytes(model.parameters())
    if reference is not None and reference is not model:
        weights += _bytes(reference.parameters())
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    states = next((each for start, each in _STATES.items() if name.startswith(start)), None)
    gradients = _bytes(iter(trained))
    found: dict[str, int | None] = {
        "weights": weights,
        "gradients": gradients,
        f"states of {name}": None if states is None else round(states * gradients),
    }
    if (head := model.get_output_embeddings()) is not None:
        found["workspace of the head"] = _workspace(trainer, head, rows)
    return found


def peak_memory() -> int:
    """Return the most bytes that the process has held, on the GPU where it uses one."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _workspace(trainer: RunTrainer, head: Any, rows: int) -> int:
    """Return the bytes that the op keeps of the logits for backward."""
    model: Any = trainer.model
    vocabulary, size = head.weight.shape
    dtype, device = run_dtype(trainer.args, model), head.weight.device
    return engine.make_plan(
        rows,
        vocabulary,
        size,
        dtype,
        backend=backends.select(getattr(trainer.args, "backend", None), device, dtype),
        device_type=device.type,
        workspace_bytes=getattr(trainer.args, "workspace_bytes", None),
        weight_dtype=head.weight.dtype,
    ).workspace_bytes


def _bytes(parameters: Iterator[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)
