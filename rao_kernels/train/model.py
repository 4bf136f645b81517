"""Load and prepare the models of a trainer: adapter, fused head, no dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments, set_seed

from ..errors import InputError, MissingDependencyError
from ..hf import attach_fused_head

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedTokenizerBase


def prepare_model(
    model: str | PathLike[str] | nn.Module, peft_config: PeftConfig | None, seed: int
) -> nn.Module:
    """Load (fp32 weights), add the adapter if given, attach the fused head, disable dropout."""
    if not isinstance(model, nn.Module):
        model = load_model(fspath(model), torch.float32)
    if peft_config is not None:
        model = add_adapter(model, peft_config, seed)
    disable_dropout(model)
    return attach_fused_head(model)


def prepare_reference(model: str | PathLike[str] | nn.Module, device: torch.device) -> nn.Module:
    """Return the reference on `device`; load it if it is a name."""
    if not isinstance(model, nn.Module):
        model = load_model(fspath(model), torch.float32, "ref_model").requires_grad_(False)
    return model.to(device)


def load_model(name: str, dtype: torch.dtype, argument: str = "model") -> nn.Module:
    """Load a causal language model from a folder or the hub; `argument` names it in errors."""
    with named(name, argument):
        model: nn.Module = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    return model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the hub."""
    with named(name, "model"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    return tokenizer


@contextlib.contextmanager
def named(name: str, argument: str) -> Iterator[None]:
    """Turn the errors of transformers about a missing model into one `InputError` of one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        expected = "a folder with a causal language model and its tokenizer, or a name on the hub"
        raise InputError(argument, expected, f"{name!r} ({said[:200]})") from error


def run_dtype(args: TrainingArguments, model: nn.Module) -> torch.dtype:
    """Return the dtype of the head's products: of mixed precision if on, else of the weights."""
    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else next(model.parameters()).dtype


def name_of(model: Any) -> str:
    """Return the folder or name that the model was loaded from."""
    return str(model.config._name_or_path)


def add_adapter(model: Any, peft_config: PeftConfig, seed: int) -> nn.Module:
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError("peft", "train") from error
    # Trainer seeds later, and the adapter must be initialised the same way in every run.
    set_seed(seed)
    layers = _layers(model)
    try:
        adapted = peft.get_peft_model(model, peft_config)
    except ValueError as error:
        raise _misfit(layers, " ".join(str(error).split())) from error
    targets = getattr(peft_config, "target_modules", None)
    names = getattr(adapted, "targeted_module_names", ())
    for target in targets if names and isinstance(targets, (set, list)) else ():
        # peft ignores a name that matches nothing as long as another one matches.
        if not any(f".{name}".endswith(f".{target}") for name in names):
            raise _misfit(layers, f"{target!r}, which is not the name of one")
    return adapted


def _layers(model: Any) -> list[str]:
    """Return the names of the linear layers that an adapter may be put on."""
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head else None
    named = [name for name, one in model.named_modules() if isinstance(one, nn.Linear)]
    names = dict.fromkeys(name.rpartition(".")[2] for name in named)
    return [name for name in names if getattr(model, name, None) is not head]


def _misfit(layers: list[str], problem: str) -> InputError:
    return InputError(
        "peft_config",
        f"an adapter on modules of the model, such as {', '.join(layers[:8])}",
        problem.rstrip("."),
        "They are LoraConfig's target_modules, --lora_target_modules on the command line.",
    )


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0: noise in the log-probs would be an error in every log-ratio."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
