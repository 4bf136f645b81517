"""`attach_fused_head`: the op inside the head of a Hugging Face causal language model."""

from __future__ import annotations

from ..errors import MissingDependencyError

try:
    import transformers as _transformers  # noqa: F401  (checked here, once, with an install hint)
except ImportError as error:
    raise MissingDependencyError("transformers", "train") from error

from .fused_head import FusedLMOutput, attach_fused_head, detach_fused_head
from .head import FusedHead

__all__ = ["FusedHead", "FusedLMOutput", "attach_fused_head", "detach_fused_head"]
