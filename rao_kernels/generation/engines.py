"""Samplers by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ..errors import InputError
from .interface import Sampler
from .transformers_sampler import TransformersSampler
from .vllm_sampler import VLLMSampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Engine = Literal["transformers", "vllm"]


def make_sampler(
    engine: Engine,
    model: nn.Module | str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: str = "auto",
) -> Sampler:
    """Make the sampler of that name.

    Args:
        engine: "transformers": from a model in memory; "vllm": from a folder or name.
        model: what the engine samples from.
        tokenizer: of the model.
        dtype: of the weights that vLLM loads; a model in memory has its own.

    Raises:
        InputError: there is no engine of this name, or the model is not of its type.
        MissingDependencyError: vLLM is not installed.
    """
    given: Any = model
    if engine == "transformers":
        return TransformersSampler(given, tokenizer)
    if engine == "vllm":
        return VLLMSampler(given, tokenizer, dtype=dtype)
    raise InputError("engine", "'transformers' or 'vllm'", repr(engine))
