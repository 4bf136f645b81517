"""The weights that a model with an adapter began with, where they are the reference."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .key import model_fingerprint, update_digest


class StartWeights:
    """A copy of the trainable weights of a model, with which it can be run again.

    The reference of a policy that begins with a trained adapter, as after SFT by LoRA: without the
    adapter the model would be the one before SFT.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = dict(weights)

    @contextlib.contextmanager
    def restored(self, model: nn.Module) -> Iterator[None]:
        """Give the model these weights; on exit its own again."""
        own = {name: p for name, p in model.named_parameters() if name in self._weights}
        assert own.keys() == self._weights.keys()
        later = {name: parameter.data for name, parameter in own.items()}
        try:
            for name, parameter in own.items():
                parameter.data = self._weights[name].to(parameter.device)
            yield
        finally:
            for name, parameter in own.items():
                parameter.data = later[name]

    def fingerprint(self, model: nn.Module) -> str:
        """Return the SHA-256 of the base model's weights and of these."""
        digest = hashlib.sha256(model_fingerprint(model).encode())
        for name, tensor in sorted(self._weights.items()):
            update_digest(digest, name, tensor)
        return digest.hexdigest()


def keep_start(model: nn.Module, *, added: bool = False) -> StartWeights | None:
    """Return a copy of the weights of an adapter that does something; None where it does nothing.

    A fresh LoRA adapter is a product with zeros: without it the model is the same, and a copy would
    be wasted.

    Args:
        model: a model, or a `PeftModel`.
        added: True for an adapter made for this run, not one that was trained before; one that is
            not LoRA then counts as doing nothing.
    """
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    if not configs:
        return None
    if all(str(config.peft_type.value) == "LORA" for config in configs.values()):
        if _is_zero_lora(model):
            return None
    elif added:
        return None
    return StartWeights(
        {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if (parameter.requires_grad or ".lora_" in name) and "value_head" not in name
        }
    )


@torch.no_grad()
def _is_zero_lora(model: nn.Module) -> bool:
    """Return whether every product of LoRA is zero and every copied module equals its original."""
    for name, parameter in model.named_parameters():
        # LoRA starts with zeros in B, of an embedding in A.
        if (".lora_B." in name or ".lora_embedding_A." in name) and bool(parameter.any()):
            return False
    for module in model.modules():
        copies = getattr(module, "modules_to_save", None)
        if not isinstance(copies, nn.ModuleDict):
            continue
        original: Any = module.original_module
        for copy in copies.values():
            weights = zip(copy.parameters(), original.parameters(), strict=True)
            if not all(torch.equal(one, other) for one, other in weights):
                return False
    return True


def start_fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights, with those of an adapter that does something."""
    start = keep_start(model)
    return model_fingerprint(model) if start is None else start.fingerprint(model)
