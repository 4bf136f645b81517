"""`rao-kernels train`: align a model with a loss of `LOSSES` on preference data.

Records are {"prompt", "responses", "rewards"} or TRL's {"prompt", "chosen", "rejected"}, in .jsonl,
.jsonl.gz or .parquet files. The output folder gets the trained model, its checkpoints,
metrics.jsonl, run.png and the cache of reference log-probs.
"""

from __future__ import annotations

import contextlib
import functools
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import IntervalStrategy
from transformers.trainer_utils import SaveStrategy

from ..data import DataReport, PreferenceDataset, Record, load_records, split_records
from ..errors import InputError, MissingDependencyError
from ..train import RAOConfig, RAOTrainer
from ..train.base import RunTrainer
from ..train.checkpoints import find, newest_complete
from ..train.config import RunConfig
from ..train.guards import StopOnInterrupt
from ..train.model import load_model, load_tokenizer
from ..train.output_folder import check_unused, check_writable, left_by_a_run
from ..train.prepare import NoRowsError, prepare_dataset
from .options import parse_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Metrics of the first and the last evaluation in the closing summary.
_SUMMARY = ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")


@dataclass
class RunArguments:
    """The model, the data and the adapter of `rao-kernels train`."""

    model: str = field(metadata={"help": "Folder or name of the model."})
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


def run(argv: Sequence[str]) -> None:
    """Parse the options, train, and print a summary."""
    arguments, config = parse_options("rao-kernels train", [RunArguments, RAOConfig], argv)
    resume = resume_from(config.resume_from_checkpoint)
    folder = Path(config.output_dir)
    check_writable(folder)
    if resume:
        find(resume, folder)
    else:
        check_unused(folder)
    stop, trainer = StopOnInterrupt(), None
    try:
        trainer = _make_trainer(arguments, config, stop)
        with stop.installed() if saves_on_interrupt(config) else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=resume)
        if stop.interrupted:
            raise KeyboardInterrupt
        trainer.save_model()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(where_it_stopped(folder, trainer)) from None
    if trainer.is_world_process_zero():
        print(summary(trainer))
    trainer.end()  # type: ignore[no-untyped-call]


def _make_trainer(arguments: RunArguments, config: RAOConfig, stop: StopOnInterrupt) -> RAOTrainer:
    train_rows, eval_rows = load_data(arguments, config)
    tokenizer = load_tokenizer(arguments.model)
    held_out: Any = eval_rows
    if arguments.eval_data is None:
        held_out = _held_out_part(eval_rows, arguments, config, tokenizer)
    if held_out is None:
        config.eval_strategy, config.eval_on_start = IntervalStrategy.NO, False
    elif config.eval_strategy == IntervalStrategy.NO:
        config.eval_strategy, config.eval_on_start = IntervalStrategy.EPOCH, True
    return RAOTrainer(
        load_model(arguments.model, getattr(torch, arguments.dtype)),
        args=config,
        train_dataset=train_rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=lora_config(arguments),
        callbacks=[stop],
    )


def load_data(arguments: RunArguments, config: RunConfig) -> tuple[list[Record], list[Record]]:
    """Load the training and the held-out records."""
    report = DataReport()
    read = functools.partial(load_records, bad_rows=config.bad_rows, report=report)
    records = read(arguments.data, limit=arguments.limit)
    held_out = read(arguments.eval_data) if arguments.eval_data else None
    for skipped in report.skipped:
        print(f"skipped {skipped}", file=sys.stderr)
    if held_out is not None:
        return records, held_out
    train, held_out = split_records(records, arguments.eval_fraction)
    if not train:
        raise InputError(
            "eval_fraction",
            "a share that leaves records to train on",
            f"{arguments.eval_fraction:g}, which holds out all {len(records)}",
            "Pass --eval_fraction 0, or --eval_data with the held-out records.",
        )
    return train, held_out


def _held_out_part(
    rows: list[Record],
    arguments: RunArguments,
    config: RAOConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> PreferenceDataset | None:
    """Make the dataset of the records held out by default; None and a warning if none is usable.

    Raises:
        InputError: none is usable, and the settings need evaluations.
    """
    if arguments.eval_fraction == 0.0:
        if config.eval_strategy != IntervalStrategy.NO:
            got = repr(IntervalStrategy(config.eval_strategy).value)
            raise InputError(
                "eval_strategy", "'no' without held-out records", got, "Give --eval_data."
            )
        return None
    reason = "none of the prompts fell into it"
    if rows:
        try:
            return prepare_dataset(rows, "evaluation data", config, tokenizer)
        except NoRowsError as error:
            reason = str(error).rstrip(".")
    if config.load_best_model_at_end or config.save_strategy == SaveStrategy.BEST:
        expected = "records for the evaluations that load_best_model_at_end and save_strategy need"
        raise InputError("eval_fraction", expected, f"{arguments.eval_fraction:g}: {reason}")
    print(
        f"warning: training goes on without evaluation: of the data {arguments.eval_fraction:.0%} "
        f"were to be held out, but {reason}. Give --eval_data, or a larger --eval_fraction.",
        file=sys.stderr,
    )
    return None


def saves_on_interrupt(config: RunConfig) -> bool:
    """Return whether Ctrl-C saves a checkpoint: if checkpoints are wanted, in a single process."""
    return config.world_size == 1 and config.save_strategy != SaveStrategy.NO


def where_it_stopped(folder: Path, trainer: RunTrainer | None) -> str:
    if not left_by_a_run(folder):
        return "before training began; the same command starts again"
    step = 0 if trainer is None else trainer.state.global_step
    last = newest_complete(folder)
    return (
        f"{f'at step {step}; ' if step else ''}the last complete checkpoint is {last or 'none'}; "
        "to continue, give the same command with --resume_from_checkpoint auto"
    )


def lora_config(arguments: RunArguments, task_type: str = "CAUSAL_LM") -> Any:
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


def resume_from(text: str | None) -> str | bool | None:
    return True if text is not None and text.lower() in ("true", "auto") else text


def summary(trainer: RunTrainer) -> str:
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
