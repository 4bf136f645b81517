"""What both engines do with token ids: the tokens that end a response, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from ..errors import InputError
from .interface import Sample, SamplingOptions


def check_sampling(prompts: Sequence[Sequence[int]], options: SamplingOptions) -> None:
    """Raise for options that no engine can follow, and for a prompt without tokens."""
    bounds = {"responses": 1, "max_new_tokens": 1, "temperature": 0, "top_k": 0, "batch_size": 1}
    for name, low in bounds.items():
        if not getattr(options, name) >= low:
            raise InputError(name, f"a number of at least {low}", getattr(options, name))
    if not 0 < options.top_p <= 1:
        raise InputError("top_p", "a number above 0, and at most 1", options.top_p)
    if options.temperature == 0 and options.responses > 1:
        fix = "Ask for one response, or raise the temperature."
        raise InputError("responses", "1 at a temperature of 0", options.responses, fix)
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompts[{number}]", "at least one token", "none")


def check_seed(seed: int) -> None:
    """Raise for a seed that numpy and torch do not take."""
    if seed < 0:
        raise InputError("seed", "0 or more", seed)


def check_positions(
    limit: int | None, prompts: Sequence[Sequence[int]], options: SamplingOptions
) -> None:
    """Raise if a prompt and its response have more tokens than a model's positions; None: any."""
    longest = max(map(len, prompts), default=0)
    if limit is not None and prompts and longest + options.max_new_tokens > limit:
        expected = f"at most {limit - longest}, as the model has {limit} positions and the "
        expected += f"longest prompt {longest} tokens"
        raise InputError("max_new_tokens", expected, options.max_new_tokens)


def derived_seed(seed: int, number: int) -> int:
    """Return a seed for part `number` of what `seed` determines, independent of other parts'."""
    return int(numpy.random.SeedSequence([seed, number]).generate_state(1)[0])


def end_tokens(generation_config: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a response: those of the generation config, and the tokenizer's.

    Training data end with the tokenizer's, which a base model's generation config may lack.
    """
    given = getattr(generation_config, "eos_token_id", None)
    found = given if isinstance(given, list) else [given]
    return sorted({int(one) for one in [*found, tokenizer.eos_token_id] if one is not None})


def make_sample(prompt: Sequence[int], ids: list[int], finished: bool, tokenizer: Any) -> Sample:
    """Make a `Sample` of the tokens that follow `prompt`, without special tokens in its text."""
    start, whole = (
        str(tokenizer.decode(one, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for one in (list(prompt), [*prompt, *ids])
    )
    # Decoded alone, a response would lose the space it begins with, as in SentencePiece.
    if whole.startswith(start):
        return Sample(ids, whole[len(start) :], finished)
    alone = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Sample(ids, str(alone), finished)
