"""Options that several commands share: the model and its adapter, the data, how to run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..data import Conversion, RecordSource
from ..errors import InputError, MissingDependencyError
from .shape_options import ShapeArguments


@dataclass
class ModelArguments:
    """The model that is trained, and its adapter."""

    model: str = field(metadata={"help": "Folder or name of the model."})
    dtype: Literal["float32", "bfloat16"] = field(
        default="float32",
        metadata={
            "help": "Dtype of the weights. bfloat16 ones lose the updates of small learning rates; "
            "for mixed precision keep float32 and pass --bf16."
        },
    )
    lora_r: int = field(
        default=0, metadata={"help": "Rank of LoRA adapters; 0: train all weights."}
    )
    lora_alpha: int = field(default=16, metadata={"help": "Scale of LoRA adapters."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Layers that get an adapter."}
    )


@dataclass
class DataArguments:
    """The records to train on and to evaluate with."""

    data: list[str] = field(
        metadata={"help": "Files of training records (.jsonl, .jsonl.gz, .parquet)."}
    )
    eval_data: list[str] | None = field(
        default=None, metadata={"help": "Files of held-out records."}
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Without eval_data: share of the prompts to hold out."}
    )
    limit: int | None = field(
        default=None, metadata={"help": "Use the first so many records of the data."}
    )


@dataclass
class ReferenceArguments:
    """The reference that the model is compared with."""

    ref_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or name of the reference (default: the model as it is at the start, "
            "with the adapter it comes with)."
        },
    )


@dataclass
class RunArguments:
    """How the command runs."""

    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Train nothing and write nothing: print data, steps, loss, two records as the "
            "model reads them, and estimates of memory and time."
        },
    )


def lora_config(arguments: ModelArguments, task_type: str = "CAUSAL_LM") -> Any:
    """Return the settings of the adapter as peft takes them; None to train all weights."""
    if arguments.lora_r == 0:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingDependencyError("peft", "train") from error
    if arguments.lora_r < 0:
        raise InputError("lora_r", "a rank of 0 or more", arguments.lora_r)
    targets = arguments.lora_target_modules
    return LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type=task_type,
    )


def record_sources(
    data: DataArguments, shapes: ShapeArguments, convert: Conversion | None = None
) -> tuple[RecordSource, RecordSource | None]:
    """Return the training and the held-out records, which are read as they are used.

    Without `eval_data`, `eval_fraction` of the prompts are held out; None where that is 0.

    convert: changes each record.
    """
    options, fraction = shapes.options(), data.eval_fraction
    train = RecordSource(data.data, options, data.limit, convert=convert)
    if data.eval_data is not None:
        return train, RecordSource(data.eval_data, options, convert=convert)
    if fraction == 0.0:
        return train, None
    train = replace(train, part="train", eval_fraction=fraction)
    return train, replace(train, part="held_out")
