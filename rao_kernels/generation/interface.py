"""What a generation engine is given, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class SamplingOptions:
    """Settings of a `Sampler`.

    responses: samples per prompt. max_new_tokens: most tokens of a sample, its end included.
    temperature: divides the logits; 0 takes the likeliest token. top_p: smallest probability mass
        that is sampled from. top_k: number of tokens that are sampled from; 0: all.
    batch_size: prompts sampled at once.
    """

    responses: int = 1
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 16


@dataclass(frozen=True)
class Sample:
    """A sampled response.

    ids: its tokens, with the one that ends it. finished: False if it was cut at `max_new_tokens`.
    """

    ids: list[int]
    text: str
    finished: bool


class Sampler(Protocol):
    """A generation engine: samples responses from one model."""

    def check(self, prompts: Sequence[Sequence[int]], options: SamplingOptions) -> None:
        """Raise for options that cannot be followed, and for prompts that are too long with them.

        `sample` does so too, of the prompts that it is given.

        Raises:
            InputError: an option is out of range, a prompt has no token, or prompt and response
                are longer than what the model takes.
        """
        ...

    def sample(
        self, prompts: Sequence[Sequence[int]], options: SamplingOptions, *, seed: int
    ) -> list[list[Sample]]:
        """Sample `options.responses` responses to each prompt.

        The random state of torch is as it was before; the same arguments give the same samples.

        Args:
            prompts: token ids, the end of the prompt included (a chat template's generation
                prompt).
            options: how to sample.
            seed: of the random numbers.
        """
        ...
