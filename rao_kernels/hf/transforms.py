"""Scale and softcap that a model applies to its head's output, read from its config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Names in configs of the same two operations. `_UNREAD` lists model types whose config has a name
# that their code does not use; `_MULTIPLIED` those that multiply by a name others divide by.
_SOFTCAP = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_SCALE_AFTER_SOFTCAP = ("logit_scale", "lm_head_multiplier")
_SCALE_BEFORE_SOFTCAP = ("output_multiplier",)
_DIVISOR = ("logits_scaling",)
_MULTIPLIED = {"logits_scaling": frozenset({"hyperclovax", "hyperclovax_vision_v2"})}
_UNREAD = {"logit_scale": frozenset({"mpt"})}


@dataclass(frozen=True)
class HeadTransform:
    """``logits = softcap * tanh(z / softcap) * scale`` of the head's output z (bias included)."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Apply the transform, in the dtype of `logits`; any shape."""
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits * self.scale

    def at(self, temperature: float) -> HeadTransform:
        """Return the transform whose logits are divided by `temperature`."""
        return self if temperature == 1.0 else replace(self, scale=self.scale / temperature)


def head_transform(config: PretrainedConfig) -> HeadTransform:
    """Read the transform from a model's config, under all the names that model families use.

    A scale m before the softcap c is the same as a softcap of c / m with the scale after it:
    ``c tanh(m z / c) = (c / m) tanh(z / (c / m)) m``.
    """
    text = config.get_text_config()
    softcaps = _values(text, _SOFTCAP)
    before = _product(_values(text, _SCALE_BEFORE_SOFTCAP))
    after = _product(_values(text, _SCALE_AFTER_SOFTCAP))
    for name in _DIVISOR:
        inverse = text.model_type not in _MULTIPLIED[name]
        after *= _product([1 / value if inverse else value for value in _values(text, (name,))])
    return HeadTransform(scale=before * after, softcap=softcaps[0] / before if softcaps else None)


def _values(config: PretrainedConfig, names: tuple[str, ...]) -> list[float]:
    read = (name for name in names if config.model_type not in _UNREAD.get(name, ()))
    found = (getattr(config, name, None) for name in read)
    return [float(value) for value in found if value is not None]


def _product(values: list[float]) -> float:
    result = 1.0
    for value in values:
        result *= value
    return result
