"""Sampling with `transformers`' generate.

Legend: P prompts, R responses of each, T tokens of the longest prompt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from ..errors import InputError
from .interface import Sample, SamplingOptions
from .text import check_positions, check_sampling, check_seed, end_tokens, make_sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TransformersSampler:
    """Samples from a model in memory: as it is at each call, on its device, in its autocast.

    Only `SamplingOptions` decide what is sampled from; of the model's generation config nothing but
    the tokens that end a response is read.

    Args:
        model: a causal language model or its `PeftModel`, with or without the fused head.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        if not callable(getattr(model, "generate", None)):
            fix = "Unwrap it first, for example with accelerator.unwrap_model."
            raise InputError("model", "a model with `generate`", type(model).__name__, fix)
        self.model: Any = model
        self.tokenizer: Any = tokenizer

    def check(self, prompts: Sequence[Sequence[int]], options: SamplingOptions) -> None:
        """Raise for options and prompts that cannot be sampled with; see `Sampler`."""
        check_sampling(prompts, options)
        config = self.model.config.get_text_config()
        check_positions(getattr(config, "max_position_embeddings", None), prompts, options)

    def sample(
        self, prompts: Sequence[Sequence[int]], options: SamplingOptions, *, seed: int
    ) -> list[list[Sample]]:
        """Sample `options.responses` responses to each prompt; see `Sampler`.

        Raises:
            InputError: as `check`, or the seed is negative.
        """
        check_seed(seed)
        self.check(prompts, options)
        step = options.batch_size
        with evaluating(self.model), _seeded(self._device(), seed):
            parts = [prompts[i : i + step] for i in range(0, len(prompts), step)]
            return [group for part in parts for group in self._sample(part, options)]

    def _sample(
        self, prompts: Sequence[Sequence[int]], options: SamplingOptions
    ) -> list[list[Sample]]:
        ends = end_tokens(self.model.generation_config, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        pad = next(iter(ends), 0) if pad is None else pad
        ids, mask = _left_padded(prompts, pad)
        with _only(self.model, _generation_config(options, ends, pad)) as config:
            device = self._device()
            output = self.model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
            )
        found = output[:, ids.shape[1] :].tolist()
        count = options.responses
        return [
            [self._cut(prompt, one, ends) for one in found[i * count : (i + 1) * count]]
            for i, prompt in enumerate(prompts)
        ]

    def _cut(self, prompt: Sequence[int], ids: list[int], ends: list[int]) -> Sample:
        """Make a sample of the tokens up to the first that ends it; padding follows."""
        last = next((position for position, one in enumerate(ids) if one in ends), None)
        kept = ids if last is None else ids[: last + 1]
        return make_sample(prompt, kept, last is not None, self.tokenizer)

    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device


def _generation_config(options: SamplingOptions, ends: list[int], pad: int) -> GenerationConfig:
    chosen: dict[str, Any] = {"do_sample": False}
    if options.temperature > 0:
        chosen = {
            "do_sample": True,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k,
        }
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=options.max_new_tokens,
        num_return_sequences=options.responses,
        eos_token_id=ends or None,
        pad_token_id=pad,
        use_cache=True,
        **chosen,
    )


@contextlib.contextmanager
def _only(model: Any, config: GenerationConfig) -> Iterator[GenerationConfig]:
    """Put `config` in the place of the model's own, which `generate` would fill gaps from."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    own = base.generation_config
    base.generation_config = config
    try:
        yield config
    finally:
        base.generation_config = own


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off, without gradients; put back which modules were in training mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference mode, whose tensors a model that goes on training could not use.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the random numbers of the CPU and of `device`; put back their states at the end."""
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    devices = range(torch.get_device_module(device).device_count())
    with torch.random.fork_rng(devices, device_type=device.type):
        torch.manual_seed(seed)
        yield


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask ``[P, T]`` int64, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, prompt in enumerate(prompts):
        ids[number, longest - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.int64)
        mask[number, longest - len(prompt) :] = 1
    return ids, mask
