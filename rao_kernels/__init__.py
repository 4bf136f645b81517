"""Fused log-probs of a language-model head, and the alignment losses on top of them."""

from ._memory import release_memory
from .fused import fused_loss, rao_loss, sequence_and_prompt_logps, sequence_logps
from .ops import linear_logprobs, linear_logprobs_and_entropy, linear_token_stats
from .sequence import SequenceBatch
from .types import EngineOptions, LossOutput, TokenStats

__version__ = "0.1.0"

__all__ = [
    "EngineOptions",
    "LossOutput",
    "SequenceBatch",
    "TokenStats",
    "fused_loss",
    "linear_logprobs",
    "linear_logprobs_and_entropy",
    "linear_token_stats",
    "rao_loss",
    "release_memory",
    "sequence_and_prompt_logps",
    "sequence_logps",
]
