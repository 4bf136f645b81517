"""The model as the trainer wants it: adapter on, head fused, dropout off."""

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
    """Load (fp32 weights), add the adapter where there is one, attach the op, disable dropout."""
    if not isinstance(model, nn.Module):
        model = load_model(fspath(model), torch.float32)
    if peft_config is not None:
        model = _add_adapter(model, peft_config, seed)
    _disable_dropout(model)
    return attach_fused_head(model)


def prepare_reference(model: str | PathLike[str] | nn.Module, device: torch.device) -> nn.Module:
    """The reference on `device`, loaded as the model is where it is a name."""
    if not isinstance(model, nn.Module):
        model = load_model(fspath(model), torch.float32, "ref_model").requires_grad_(False)
    return model.to(device)


def load_model(name: str, dtype: torch.dtype, argument: str = "model") -> nn.Module:
    """The causal language model in a folder or on the hub; `argument` names it in errors."""
    with _named(name, argument):
        model: nn.Module = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    return model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or on the hub."""
    with _named(name, "model"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    return tokenizer


@contextlib.contextmanager
def _named(name: str, argument: str) -> Iterator[None]:
    """transformers says in many ways, and paragraphs, that it found no model."""
    try:
        yield
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        expected = "a folder with a causal language model and its tokenizer, or a name on the hub"
        raise InputError(argument, expected, f"{name!r} ({said[:200]})") from error


def run_dtype(args: TrainingArguments, model: nn.Module) -> torch.dtype:
    """Dtype of the head's products: of mixed precision where it is on, else of the weights."""
    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else next(model.parameters()).dtype


def name_of(model: Any) -> str:
    """Folder or name the model was loaded from."""
    return str(model.config._name_or_path)


def _add_adapter(model: Any, peft_config: PeftConfig, seed: int) -> nn.Module:
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError("peft", "train") from error
    # Trainer seeds later; the adapter's start must be the same in every run.
    set_seed(seed)
    layers = _layers(model)
    try:
        adapted = peft.get_peft_model(model, peft_config)
    except ValueError as error:
        raise _misfit(layers, " ".join(str(error).split())) from error
    targets = getattr(peft_config, "target_modules", None)
    names = getattr(adapted, "targeted_module_names", ())
    for target in targets if names and isinstance(targets, (set, list)) else ():
        # peft passes over a name without a match where another one has some.
        if not any(f".{name}".endswith(f".{target}") for name in names):
            raise _misfit(layers, f"{target!r}, which none is called")
    return adapted


def _layers(model: Any) -> list[str]:
    """What the linear layers are called that an adapter may be put on."""
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


def _disable_dropout(model: nn.Module) -> None:
    """Noise in the log-probs of the policy is an error in every log-ratio."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
