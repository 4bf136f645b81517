"""Sampling of responses: one interface over transformers' generation and vLLM."""

from __future__ import annotations

from ..errors import MissingDependencyError

try:
    import transformers as _transformers  # noqa: F401  (checked here, once, with an install hint)
except ImportError as error:
    raise MissingDependencyError("transformers", "train") from error

from .engines import Engine, make_sampler
from .interface import Sample, Sampler, SamplingOptions
from .prompts import PromptRow, prompt_ids, read_prompts
from .records import ResponseSampler, refuse_responses
from .scoring import sampled_logps
from .text import derived_seed
from .transformers_sampler import TransformersSampler
from .vllm_sampler import VLLMSampler

__all__ = [
    "Engine",
    "PromptRow",
    "ResponseSampler",
    "Sample",
    "Sampler",
    "SamplingOptions",
    "TransformersSampler",
    "VLLMSampler",
    "derived_seed",
    "make_sampler",
    "prompt_ids",
    "read_prompts",
    "refuse_responses",
    "sampled_logps",
]
