"""The tensors of a micro-batch that a causal language model is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def model_inputs(batch: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Return ids, and attention mask or positions, of a micro-batch of `data.Collator`.

    A model is given no other tensor: mixed precision may round the others.

    prefix: of their names; "kl_" for the mismatched sequences of KTO.
    """
    names = ("input_ids", "attention_mask", "position_ids")
    return {name: batch[prefix + name] for name in names if prefix + name in batch}
