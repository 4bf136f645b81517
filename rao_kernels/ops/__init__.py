"""Registered ops and their public functions."""

from .linear_logprobs import linear_logprobs, linear_logprobs_and_entropy, linear_token_stats

__all__ = ["linear_logprobs", "linear_logprobs_and_entropy", "linear_token_stats"]
