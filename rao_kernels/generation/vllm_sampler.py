"""Sampling with vLLM, where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

from ..errors import InputError, MissingDependencyError
from .interface import Sample, SamplingOptions
from .text import (
    check_positions,
    check_sampling,
    check_seed,
    derived_seed,
    end_tokens,
    make_sample,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class VLLMSampler:
    """Samples from a model that vLLM loads.

    Each prompt has a seed of its own, so that its samples do not depend on what else is in the
    batch, but for the rounding of vLLM's kernels.

    Args:
        model: folder or name of the model.
        tokenizer: its tokenizer.
        dtype: of the weights, as vLLM names it; "auto": that of the files.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, *, dtype: str = "auto"
    ) -> None:
        if not isinstance(model, str):
            expected = "the folder or name of a model, which vLLM loads itself"
            raise InputError("model", expected, type(model).__name__)
        self._vllm: Any = _import()
        self.tokenizer: Any = tokenizer
        self._ends = end_tokens(_generation_config(model), tokenizer)
        # Without the settings of the model's generation config.
        self.engine = self._vllm.LLM(model=model, dtype=dtype, generation_config="vllm")

    def check(self, prompts: Sequence[Sequence[int]], options: SamplingOptions) -> None:
        """Raise for options and prompts that cannot be sampled with; see `Sampler`."""
        check_sampling(prompts, options)
        check_positions(self.engine.llm_engine.model_config.max_model_len, prompts, options)

    def sample(
        self, prompts: Sequence[Sequence[int]], options: SamplingOptions, *, seed: int
    ) -> list[list[Sample]]:
        """Sample `options.responses` responses to each prompt; see `Sampler`.

        vLLM batches the prompts itself; `options.batch_size` prompts are handed to it at once.
        """
        check_seed(seed)
        self.check(prompts, options)
        samples: list[list[Sample]] = []
        for start in range(0, len(prompts), options.batch_size):
            part = [list(prompt) for prompt in prompts[start : start + options.batch_size]]
            settings = [
                self._settings(options, derived_seed(seed, start + i)) for i in range(len(part))
            ]
            given = [{"prompt_token_ids": prompt} for prompt in part]
            outputs = self.engine.generate(given, settings, use_tqdm=False)
            samples += [
                [self._sample(prompt, one) for one in output.outputs]
                for prompt, output in zip(part, outputs, strict=True)
            ]
        return samples

    def _settings(self, options: SamplingOptions, seed: int) -> Any:
        return self._vllm.SamplingParams(
            n=options.responses,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k or -1,
            max_tokens=options.max_new_tokens,
            stop_token_ids=self._ends,
            seed=seed,
            detokenize=False,
        )

    def _sample(self, prompt: list[int], completion: Any) -> Sample:
        finished = completion.finish_reason == "stop"
        return make_sample(prompt, list(completion.token_ids), finished, self.tokenizer)


def _import() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise MissingDependencyError("vllm", None) from error
    return vllm


def _generation_config(model: str) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:  # a folder without generation_config.json
        return None
