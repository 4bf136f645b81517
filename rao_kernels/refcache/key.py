"""Fingerprints of what reference log-probabilities depend on, and the cache key made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Settings of a model's config that change without changing what it computes.
_VOLATILE = {"transformers_version", "use_cache", "_name_or_path", "dtype", "torch_dtype"}


def cache_key(parts: Mapping[str, str]) -> str:
    """Return the SHA-256 of the named parts."""
    return _digest(json.dumps(dict(parts), sort_keys=True))


def differing_parts(parts: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """Return the names of the parts that differ, for messages."""
    names = sorted(set(parts) | set(others))
    return [name for name in names if parts.get(name) != others.get(name)]


def model_fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights; with a LoRA adapter, of its base model's.

    Those of a value head (`hf.attach_value_head`) do not belong to it.
    The weights are hashed, not the name: a checkpoint may have been overwritten in place.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        base_name = _base_name(name)
        if base_name is None:
            continue
        update_digest(digest, base_name, tensor)
    return digest.hexdigest()


def update_digest(digest: Any, name: str, tensor: Tensor) -> None:
    """Add a tensor of that name to a hashlib digest."""
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().view(-1)
    digest.update(flat.view(torch.uint8).numpy().data)


def config_fingerprint(config: Any) -> str:
    """Return the SHA-256 of a transformers config, without settings that leave its output alone."""
    settings = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE}
    return _digest(json.dumps(settings, sort_keys=True, default=str))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the vocabulary and the special tokens."""
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map]
    return _digest(json.dumps(content, sort_keys=True, default=str))


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the chat template, "none" without one."""
    template = getattr(tokenizer, "chat_template", None)
    return _digest(json.dumps(template, sort_keys=True)) if template else "none"


def _base_name(name: str) -> str | None:
    """Return a weight's name in the base model; None for one of an adapter or a value head."""
    segments = name.split(".")
    added = ("modules_to_save", "value_head")
    if any(part.startswith("lora_") or part in added for part in segments):
        return None
    wrappers = {"base_layer", "original_module"}
    return ".".join(part for part in segments if part not in wrappers).removeprefix(
        "base_model.model."
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
