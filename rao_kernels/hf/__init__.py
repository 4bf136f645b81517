"""`attach_fused_head`: the op inside the head of a Hugging Face causal language model."""

from __future__ import annotations

from ..errors import MissingDependencyError

try:
    import transformers as _transformers  # noqa: F401  (checked here, once, with an install hint)
except ImportError as error:
    raise MissingDependencyError("transformers", "train") from error

from .fused_head import FusedLMOutput, attach_fused_head, detach_fused_head
from .head import FusedHead
from .packing import check_packing
from .value_head import ValueHead, attach_value_head, load_value_head, save_value_head

__all__ = [
    "FusedHead",
    "FusedLMOutput",
    "ValueHead",
    "attach_fused_head",
    "attach_value_head",
    "check_packing",
    "detach_fused_head",
    "load_value_head",
    "save_value_head",
]
