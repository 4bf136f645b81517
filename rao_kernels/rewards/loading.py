"""Load the models and tokenizers that score."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from ..data.messages import one_line
from ..errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Kind = Literal["CausalLM", "SequenceClassification"]


def load_model(
    kind: Kind, name: str | PathLike[str], dtype: Dtype, argument: str
) -> tuple[nn.Module, list[str]]:
    """Load a model from a folder or the hub; an adapter is merged into its base model.

    Args:
        kind: which head it has.
        name: a model, or the folder of an adapter, which names its base model.
        dtype: of the weights; "auto": as they were saved.
        argument: names the model in errors.

    Returns:
        The model, and the names of the weights that the checkpoint lacks.

    Raises:
        InputError: there is no such model.
    """
    import transformers

    name = fspath(name)
    auto: Any = getattr(transformers, f"AutoModelFor{kind}")
    try:
        if is_adapter(name):
            return _merged(kind, name, dtype), []
        model, info = auto.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise _no_model(name, argument, error) from error
    return model, sorted(info["missing_keys"])


def is_adapter(name: str | PathLike[str]) -> bool:
    """Return whether this is the folder of an adapter."""
    return (Path(name) / "adapter_config.json").is_file()


def _merged(kind: Kind, name: str, dtype: Dtype) -> nn.Module:
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError("peft", "train") from error
    if not (Path(name) / "adapter_model.safetensors").is_file():
        raise OSError(f"{name} holds no adapter_model.safetensors")
    auto: Any = getattr(peft, f"AutoPeftModelFor{kind}")
    labels = {"num_labels": 1} if kind == "SequenceClassification" else {}
    merged: nn.Module = auto.from_pretrained(name, dtype=dtype, **labels).merge_and_unload()
    return merged


def load_tokenizer(name: str | PathLike[str], argument: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the hub; `argument` names it in errors."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(fspath(name))
    except (OSError, ValueError) as error:
        raise _no_model(fspath(name), argument, error) from error
    return tokenizer


def _no_model(name: str, argument: str, error: Exception) -> InputError:
    expected = "a folder with a model and its tokenizer, or a name on the hub"
    return InputError(argument, expected, f"{name!r} ({one_line(error)[:200]})")


def ready(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """Freeze the model and move it to `device`: None is a GPU if there is one."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().requires_grad_(False).to(device)


def longest_input(model: Any) -> float:
    """Return the number of positions that the model was made for; infinity if it says none."""
    config = model.config.get_text_config()
    return float(getattr(config, "max_position_embeddings", None) or "inf")
