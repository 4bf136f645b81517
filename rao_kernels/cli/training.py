"""What every training command does: the output folder, resuming, Ctrl-C, the summary."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from ..errors import InputError
from ..train.base import AUTOMATIC, RunTrainer
from ..train.checkpoints import find, newest_complete
from ..train.config import RAOConfig, RunConfig
from ..train.guards import StopOnInterrupt
from ..train.output_folder import check_settings, check_writable
from .dry_run import report
from .memory import peak_memory
from .options import given_flags

# Metrics of the first and the last evaluation in the closing summary.
_SUMMARY = (
    *("reward/mean", "loss", "mean_token_accuracy", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected"),
)

MakeTrainer = Callable[[Sequence[TrainerCallback]], RunTrainer]
Report = Callable[[RunTrainer], Iterator[str]]


def run_training(
    name: str,
    config: RunConfig,
    make_trainer: MakeTrainer,
    *,
    argv: Sequence[str] = (),
    dry_run: bool = False,
    report: Report = report,
) -> None:
    """Train, save the model and print a summary; go on if the output folder holds this run.

    Args:
        name: of the command.
        config: the settings of the run.
        make_trainer: makes the trainer with these callbacks; called once the folder is known to
            be usable.
        argv: the command's arguments, which the model card repeats.
        dry_run: print what would be trained instead.
        report: gives the lines that a dry run prints.

    Raises:
        InputError: the output folder holds another run, or cannot be written to.
        KeyboardInterrupt: Ctrl-C, with where the run stopped and how to go on.
    """
    folder = Path(str(config.output_dir))
    asked = _asked(config.resume_from_checkpoint)
    if asked is True:
        config.resume_from_checkpoint = AUTOMATIC
        check_settings(folder, config)
    else:
        find(asked, folder)
    if dry_run:
        _dry_run(config, make_trainer, report)
        return
    check_writable(folder)
    stop, trainer = StopOnInterrupt(), None
    try:
        trainer = make_trainer([stop])
        trainer.command = ["rao-kernels", name, *given_flags(argv)]
        if asked is True and (steps := trainer.finished_steps()) is not None:
            _say_finished(trainer, steps)
            return
        with stop.installed() if _saves_on_interrupt(config) else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=asked)
        if stop.interrupted:
            raise KeyboardInterrupt
        trainer.save_model()
        conclusion = trainer.conclude()
        trainer.mark_finished()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_where_it_stopped(folder, trainer, asked)) from None
    if trainer.is_world_process_zero():
        print("\n".join(text for text in (conclusion, _summary(trainer)) if text))
    trainer.end()  # type: ignore[no-untyped-call]


def _dry_run(config: RunConfig, make_trainer: MakeTrainer, report: Report) -> None:
    """Print what would be trained; all that is written goes to a folder that is removed."""
    if config.world_size > 1:
        fix = "Leave torchrun out."
        raise InputError("dry_run", "one process", f"{config.world_size} processes", fix)
    with tempfile.TemporaryDirectory() as scratch:
        config.output_dir = scratch
        if isinstance(config, RAOConfig):
            config.ref_cache_dir, config.ref_cache = None, "reuse"
        for line in report(make_trainer([])):
            print(line, flush=True)


def _asked(text: str | None) -> str | bool:
    """Return the checkpoint to go on from; True: the newest of the folder, if there is one."""
    return True if text is None or text.lower() in ("true", "auto") else text


def _saves_on_interrupt(config: RunConfig) -> bool:
    """Return whether Ctrl-C saves a checkpoint: if checkpoints are wanted, in a single process."""
    return config.world_size == 1 and config.save_strategy != SaveStrategy.NO


def _say_finished(trainer: RunTrainer, steps: int) -> None:
    if trainer.is_world_process_zero():
        print(
            f"this run is finished: its model, of {steps} steps, is in {trainer.args.output_dir}. "
            "To train it longer give more --num_train_epochs or --max_steps."
        )
    trainer.end()  # type: ignore[no-untyped-call]


def _where_it_stopped(folder: Path, trainer: RunTrainer | None, asked: str | bool) -> str:
    step = 0 if trainer is None else trainer.state.global_step
    at = f"at step {step}" if step else "before training began"
    last = newest_complete(folder)
    if last is None:
        return f"{at}, without a complete checkpoint; the same command starts again"
    changed = "" if asked is True else " without --resume_from_checkpoint"
    return f"{at}; the same command{changed} goes on from {last}"


def _summary(trainer: RunTrainer) -> str:
    lines = []
    evaluations = [
        entry
        for entry in trainer.state.log_history
        if any(f"eval_{name}" in entry for name in _SUMMARY)
    ]
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        steps = [f"step {entry['step']}" for entry in (first, last)]
        lines.append(f"{'held-out':<20}{steps[0]:>12}{steps[1]:>12}")
        for name in _SUMMARY:
            if f"eval_{name}" in last:
                before, after = first[f"eval_{name}"], last[f"eval_{name}"]
                lines.append(f"{name:<20}{before:>12.4f}{after:>12.4f}")
    lines.append(f"peak memory of the process: {peak_memory() / 2**30:.2f} GiB")
    lines.append(f"model, metrics.jsonl and run.png are in {trainer.args.output_dir}")
    return "\n".join(lines)
