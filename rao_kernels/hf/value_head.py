"""`attach_value_head`: values of positions, from the same call of the model as log-probs.

Legend: B sequences, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InputError
from .unwrap import causal_lm

Model = TypeVar("Model", bound=nn.Module)

FILE = "value_head.safetensors"
_NAME = "value_head"
_READ = ("input_ids", "attention_mask", "position_ids")


class ValueHead(nn.Module):
    """Values of positions: a linear layer on the policy's hidden states, or a model of its own.

    linear: ``[1, D]`` in fp32, at first zero, or None. model: a model of token classes with one
    class, or None.
    """

    def __init__(self, size: int, model: nn.Module | None) -> None:
        super().__init__()
        self.linear: nn.Linear | None = None
        self.model = model
        if model is None:
            self.linear = nn.Linear(size, 1, dtype=torch.float32)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Return ``[B, T]`` fp32 values.

        Args:
            hidden: ``[B, T, D]`` hidden states of the policy.
            inputs: what the policy's trunk was given.
        """
        if self.linear is None:
            assert self.model is not None
            given = {name: inputs[name] for name in _READ if name in inputs}
            values: Tensor = self.model(**given, use_cache=False).logits[..., 0]
            return values.float()
        with torch.autocast(hidden.device.type, enabled=False):
            weight, bias = self.linear.weight.float(), self.linear.bias.float()
            return nn.functional.linear(hidden.float(), weight, bias)[..., 0]


def attach_value_head(model: Model, value_model: nn.Module | None = None) -> Model:
    """Make a model with the fused head return values of positions too.

    With ``"token_values"`` in `logp_stats` its output then has these, ``[B, T]`` fp32. The head is
    a part of the model, so that one call of its wrapper (DDP, FSDP2) gives log-probs and values.
    `save_pretrained` leaves it out: `save_value_head` writes it beside the policy.

    Args:
        model: what `attach_fused_head` returned; changed in place. Attach adapters before. A model
            with a value head keeps it.
        value_model: a model of token classes with one class, such as
            ``AutoModelForTokenClassification.from_pretrained(name, num_labels=1)``, that reads the
            same tokens. None: a linear layer on the policy's hidden states, at first zero, whose
            gradient reaches the policy.

    Returns:
        The same model.

    Raises:
        InputError: the model is no causal language model, or `value_model` has several classes.
    """
    lm: Any = causal_lm(model)
    if hasattr(lm, _NAME):
        return model
    if value_model is not None:
        classes = getattr(getattr(value_model, "config", None), "num_labels", None)
        if not isinstance(value_model, PreTrainedModel) or classes != 1:
            found = f"{type(value_model).__name__} with {classes} classes"
            raise InputError("value_model", "a model of token classes with num_labels=1", found)
    device = next(lm.parameters()).device
    head = ValueHead(lm.get_output_embeddings().in_features, value_model).to(device)
    setattr(lm, _NAME, head)
    own = {f"{_NAME}.{key}" for key in head.state_dict()}
    lm._keys_to_ignore_on_save = {*(lm._keys_to_ignore_on_save or ()), *own}
    return model


def value_head_of(model: nn.Module) -> ValueHead:
    """Return the value head of a model, a `PeftModel` or not."""
    lm = causal_lm(model)
    head = getattr(lm, _NAME, None)
    if not isinstance(head, ValueHead):
        raise InputError("model", "a model that attach_value_head has been called on", type(lm))
    return head


def values_of(model: nn.Module, hidden: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Return ``[B, T]`` values of hidden states; for the forward of an attached model."""
    head = getattr(model, _NAME, None)
    if head is None:
        fix = "Call attach_value_head(model)."
        raise InputError("logp_stats", "a model with a value head for 'token_values'", "none", fix)
    values: Tensor = head(hidden, inputs)
    return values


def save_value_head(
    model: nn.Module, folder: Path, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write the value head's weights to ``value_head.safetensors`` in `folder`.

    state_dict: of the whole model, where its weights are sharded over ranks.
    """
    from safetensors.torch import save_file

    weights = value_head_of(model).state_dict()
    if state_dict is not None:
        mark = f"{_NAME}."
        weights = {k.partition(mark)[2]: v for k, v in state_dict.items() if mark in k}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / FILE)


def load_value_head(model: nn.Module, folder: Path) -> None:
    """Read what `save_value_head` wrote into the value head of `model`."""
    from safetensors.torch import load_file

    path = folder / FILE
    if not path.is_file():
        fix = "It was saved without a value head."
        raise InputError("resume_from_checkpoint", f"a folder with {FILE}", str(folder), fix)
    value_head_of(model).load_state_dict(load_file(path))
