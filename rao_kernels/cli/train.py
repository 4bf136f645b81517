"""`rao-kernels train`: align a model with a loss of `LOSSES` on preference data.

Rows are {"prompt", "responses", "rewards"} or TRL's {"prompt", "chosen", "rejected"}, in .jsonl,
.jsonl.gz or .parquet files. The output folder gets the trained model, its checkpoints,
metrics.jsonl, run.png and the cache of reference log-probs.
"""

from __future__ import annotations

import functools
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..data import DataReport, Record, load_records, split_records
from ..errors import InputError, MissingDependencyError
from ..train import RAOConfig, RAOTrainer
from .options import parse_options

# What the closing summary shows of the evaluation before and after.
_SUMMARY = ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")


@dataclass
class RunArguments:
    """What is trained on what."""

    model: str = field(metadata={"help": "Folder or name of the model."})
    data: list[str] = field(metadata={"help": "Files of training rows."})
    eval_data: list[str] | None = field(default=None, metadata={"help": "Files of held-out rows."})
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Without eval_data: share of prompts held out."}
    )
    limit: int | None = field(default=None, metadata={"help": "Use this many rows of the data."})
    dtype: Literal["float32", "bfloat16"] = field(
        default="float32",
        metadata={"help": "Weights. Small learning rates are lost in bfloat16; see --bf16."},
    )
    lora_r: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 trains all."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of LoRA adapters."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Layers that get an adapter."}
    )


def run(argv: Sequence[str]) -> None:
    """Parse the options, train, and say what came of it."""
    arguments, config = parse_options("rao-kernels train", [RunArguments, RAOConfig], argv)
    train_rows, eval_rows = _load(arguments, config)
    if eval_rows and config.eval_strategy == "no":
        config.eval_strategy, config.eval_on_start = "epoch", True
    trainer = RAOTrainer(
        AutoModelForCausalLM.from_pretrained(
            arguments.model, dtype=getattr(torch, arguments.dtype)
        ),
        args=config,
        train_dataset=train_rows,
        eval_dataset=eval_rows or None,
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
        peft_config=_lora(arguments),
    )
    trainer.train(resume_from_checkpoint=_resume(config.resume_from_checkpoint))
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(_summary(trainer))
    trainer.end()  # type: ignore[no-untyped-call]


def _load(arguments: RunArguments, config: RAOConfig) -> tuple[list[Record], list[Record]]:
    """Training and held-out records."""
    report = DataReport()
    read = functools.partial(load_records, bad_rows=config.bad_rows, report=report)
    records = read(arguments.data, limit=arguments.limit)
    held_out = read(arguments.eval_data) if arguments.eval_data else None
    for skipped in report.skipped:
        print(f"skipped {skipped}", file=sys.stderr)
    if held_out is None:
        return split_records(records, arguments.eval_fraction)
    return records, held_out


def _lora(arguments: RunArguments) -> Any:
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
        task_type="CAUSAL_LM",
    )


def _resume(text: str | None) -> str | bool | None:
    return True if text is not None and text.lower() in ("true", "auto") else text


def _summary(trainer: RAOTrainer) -> str:
    lines = []
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        steps = [f"step {entry['step']}" for entry in (first, last)]
        lines.append(f"{'held-out':<20}{steps[0]:>12}{steps[1]:>12}")
        for name in _SUMMARY:
            if f"eval_{name}" in last:
                before, after = first[f"eval_{name}"], last[f"eval_{name}"]
                lines.append(f"{name:<20}{before:>12.4f}{after:>12.4f}")
    lines.append(f"peak memory of the process: {_peak_memory() / 2**30:.2f} GiB")
    lines.append(f"model, metrics.jsonl and run.png are in {trainer.args.output_dir}")
    return "\n".join(lines)


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
