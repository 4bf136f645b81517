"""Sampling of responses: one interface over transformers' generation and vLLM."""

from __future__ import annotations

from ..errors import MissingDependencyError

try:
    import transformers as _transformers  # noqa: F401  (checked here, once, with an install hint)
except ImportError as error:
    raise MissingDependencyError("transformers", "train") from error

from .engines import Engine, make_sampler
from .interface import Sample, Sampler, SamplingOptions
from .prompts import prompt_ids
from .scoring import sampled_logps
from .transformers_sampler import TransformersSampler
from .vllm_sampler import VLLMSampler

__all__ = [
    "Engine",
    "Sample",
    "Sampler",
    "SamplingOptions",
    "TransformersSampler",
    "VLLMSampler",
    "make_sampler",
    "prompt_ids",
    "sampled_logps",
]
