"""Sampling of responses: one interface over transformers' generation and vLLM."""

from .interface import Sample, Sampler, SamplingOptions

__all__ = ["Sample", "Sampler", "SamplingOptions"]
