"""Load and prepare the models of a trainer: adapter, fused head, no dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    TrainingArguments,
    set_seed,
)
from transformers.utils.hub import cached_file

from ..errors import InputError, MissingDependencyError
from ..hf import ValueHead, attach_fused_head, attach_value_head

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedTokenizerBase


def prepare_model(
    model: str | PathLike[str] | nn.Module, peft_config: PeftConfig | None, seed: int
) -> nn.Module:
    """Load (fp32 weights), add the adapter if given, attach the fused head, disable dropout.

    An adapter that the model has is merged into its weights before another one is added.
    """
    if not isinstance(model, nn.Module):
        model = load_model(fspath(model), torch.float32)
    if peft_config is not None:
        model = add_adapter(_merged(model), peft_config, seed)
    disable_dropout(model)
    return attach_fused_head(model)


def prepare_reference(model: str | PathLike[str] | nn.Module, device: torch.device) -> nn.Module:
    """Return the reference on `device`; load it if it is a name."""
    if not isinstance(model, nn.Module):
        model = _merged(load_model(fspath(model), torch.float32, "ref_model")).requires_grad_(False)
    return model.to(device)


def load_model(name: str, dtype: torch.dtype, argument: str = "model") -> nn.Module:
    """Load a causal language model from a folder or the hub.

    The name of an adapter gives a `PeftModel` around its base model, whose adapter can be trained.

    argument: names the model in errors.
    """
    with named(name, argument):
        if _is_adapter(name):
            return _load_adapter(name, dtype, argument)
        model: nn.Module = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    return model


def add_value_head(model: nn.Module, name: str) -> None:
    """Attach a value head to the policy: a linear layer, or the model `name` with one output."""
    if name == "head":
        attach_value_head(model)
        return
    with named(name, "value_model"):
        values, report = AutoModelForTokenClassification.from_pretrained(
            name, num_labels=1, dtype=torch.float32, output_loading_info=True
        )
    # A causal model has no such layer, a reward model's has no bias: values begin at 0 then.
    missing = set(report["missing_keys"])
    for key, parameter in values.named_parameters():
        if key in missing:
            nn.init.zeros_(parameter)
    disable_dropout(values)
    attach_value_head(model, values)


def value_model_of(model: Any) -> nn.Module | None:
    """Return the second model that a model's values come from; None without one."""
    heads = [module for module in model.modules() if isinstance(module, ValueHead)]
    return heads[0].model if heads else None


def find_tokenizer(model: str | PathLike[str] | nn.Module) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model: from its own folder, or from an adapter's base model."""
    if isinstance(model, nn.Module):
        return load_tokenizer(name_of(model))
    name = fspath(model)
    with named(name, "model"):
        if _is_adapter(name) and not _has_file(name, "tokenizer_config.json"):
            from peft import PeftConfig

            name = str(PeftConfig.from_pretrained(name).base_model_name_or_path)
    return load_tokenizer(name)


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


def _has_file(name: str, file: str) -> bool:
    found = cached_file(
        name,
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found is not None


def _is_adapter(name: str) -> bool:
    """Return whether a folder or a name on the hub holds an adapter and no model of its own."""
    return _has_file(name, "adapter_config.json") and not _has_file(name, "config.json")


def _load_adapter(name: str, dtype: torch.dtype, argument: str) -> nn.Module:
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError("peft", "train") from error
    if not _has_file(name, "adapter_model.safetensors"):
        expected = "an adapter with its weights in adapter_model.safetensors"
        raise InputError(argument, expected, f"{name!r} without it")
    model: nn.Module = peft.AutoPeftModelForCausalLM.from_pretrained(
        name, dtype=dtype, is_trainable=True
    )
    return model


def _merged(model: Any) -> nn.Module:
    """Return the model with its adapter, if it has one, merged into the weights."""
    if not getattr(model, "peft_config", None):
        return cast(nn.Module, model)
    if not hasattr(model, "merge_and_unload"):
        expected = "an adapter that can be merged, such as LoRA, before another one"
        raise InputError("peft_config", expected, type(model).__name__)
    return cast(nn.Module, model.merge_and_unload())


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
