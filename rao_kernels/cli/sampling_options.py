"""Options of sampling, for every command that samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..generation import SamplingOptions
from .options import option


@dataclass
class SamplingArguments:
    """How responses are sampled."""

    temperature: float = option(
        1.0, "Divides the logits; at 0 the likeliest token is taken, and there is one response."
    )
    top_p: float = option(1.0, "Sample from the fewest tokens of this probability mass.")
    top_k: int = option(0, "Sample from so many of the likeliest tokens; 0: from all.")
    max_new_tokens: int = option(256, "Most tokens of a response; a longer one is cut.")
    batch_size: int = option(16, "Prompts, each with all its responses, that are sampled at once.")

    def sampling(self, responses: int) -> SamplingOptions:
        """Return the settings of a sampler."""
        return SamplingOptions(
            responses=responses,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            batch_size=self.batch_size,
        )


def default_device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found
