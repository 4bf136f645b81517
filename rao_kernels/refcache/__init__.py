"""Reference log-probabilities, computed once and kept on disk."""

from .build import CachePolicy, fill_cache, join_rows, mismatched_logps, reference_mode, score_batch
from .key import (
    cache_key,
    config_fingerprint,
    model_fingerprint,
    template_fingerprint,
    tokenizer_fingerprint,
)
from .start import StartWeights, keep_start, start_fingerprint
from .store import ReferenceCache, RowLayout, RowValues, ShardValues, write_atomic

__all__ = [
    "CachePolicy",
    "ReferenceCache",
    "RowLayout",
    "RowValues",
    "ShardValues",
    "StartWeights",
    "cache_key",
    "config_fingerprint",
    "fill_cache",
    "join_rows",
    "keep_start",
    "mismatched_logps",
    "model_fingerprint",
    "reference_mode",
    "score_batch",
    "start_fingerprint",
    "template_fingerprint",
    "tokenizer_fingerprint",
    "write_atomic",
]
