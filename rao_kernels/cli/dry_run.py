"""`--dry_run`: what a training command would do, without training and without a file."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import IntervalStrategy

from ..data import Example, TokenizedRow
from ..train.base import RunTrainer
from ..train.prepare import each_dataset
from .memory import estimate, peak_memory

# Records that are decoded.
SHOWN = 2
_WIDTH = 400


@dataclass(frozen=True)
class Measured:
    """Seconds of a token: forward and backward together, and forward alone. rows: S * T."""

    step: float
    forward: float
    rows: int


def report(trainer: RunTrainer) -> Iterator[str]:
    """Yield the lines of a dry run; the weights stay as they are."""
    yield from method(trainer)
    steps = _steps(trainer)
    yield from _plan(trainer, steps)
    rows = trainer.train_dataset.rows
    yield from shown([rows[index] for index in range(min(SHOWN, len(rows)))], trainer)
    measured = _measure(trainer)
    yield from memory(trainer, measured)
    yield from _time(trainer, measured, steps)


def method(trainer: RunTrainer) -> Iterator[str]:
    """Yield what the run is: its method, its data, its learning rate."""
    args = trainer.args
    yield "dry run: nothing is trained, nothing is written"
    yield f"method: {trainer.method()}"
    yield from (f"{name}: {value}" for name, value in trainer.facts())
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    yield f"learning rate: {args.learning_rate:g}, {schedule}, warm-up {args.warmup_steps:g}"


def _plan(trainer: RunTrainer, steps: int) -> Iterator[str]:
    for what, datasets in (("training", trainer.train_dataset), ("held-out", trainer.eval_dataset)):
        for dataset in each_dataset(datasets):
            found = sum(tokens_of(row) for row in dataset.rows)
            yield f"{what} data: {len(dataset)} {trainer.units}, {found} tokens with responses"
    per_epoch = steps_of_epoch(trainer)
    yield f"steps: {steps}, {steps / per_epoch:.2f} epochs of {per_epoch}"
    yield step_size(trainer)


def step_size(trainer: RunTrainer) -> str:
    """Say how many prompts, or pairs, an optimizer step takes."""
    size, batches = trainer.args.train_batch_size, trainer.args.gradient_accumulation_steps
    return f"{trainer.units} per step: {size * batches} ({size} x {batches} micro-batches)"


def shown(rows: Sequence[TokenizedRow], trainer: RunTrainer) -> Iterator[str]:
    """Yield records as the model reads them."""
    tokenizer = trainer.processing_class
    for row in rows:
        yield f"record {row.where}"
        yield f"  prompt, {len(row.prompt)} tokens: {_text(tokenizer, row.prompt)}"
        for number, response in enumerate(row.responses):
            notes = f"{len(response)} tokens"
            if row.rewards is not None and trainer.units == "pairs":
                # The rewards of a pair are its margin and 0.
                notes += f", margin {row.rewards[0]:g}" if number == 0 else ""
            elif row.rewards is not None:
                notes += f", reward {row.rewards[number]:g}"
            if row.preferred is not None:
                notes += ", preferred" if row.preferred[number] else ", not preferred"
            yield f"  response {number + 1}, {notes}: {_text(tokenizer, response)}"


def _text(tokenizer: Any, ids: torch.Tensor) -> str:
    """Return decoded ids in one line, cut in the middle if they are long."""
    text = json.dumps(tokenizer.decode(ids.tolist()), ensure_ascii=False)
    half = _WIDTH // 2
    return text if len(text) <= _WIDTH else f"{text[:half]} ... {text[-half:]}"


def _measure(trainer: RunTrainer) -> Measured:
    """Run the largest micro-batch, which warms up and needs most memory, then two random ones."""
    dataset, size = trainer.train_dataset, trainer.args.train_batch_size
    lengths = [tokens_of(row) for row in dataset.rows]
    largest = sorted(range(len(dataset)), key=lambda index: -lengths[index])[:size]
    order = torch.randperm(
        len(dataset), generator=torch.Generator().manual_seed(trainer.args.seed)
    ).tolist()
    batches = [largest, order[:size], order[size : 2 * size] or order[:size]]
    return measure([trainer.trial_examples(indices) for indices in batches], trainer)


def measure(batches: Sequence[Sequence[Example]], trainer: RunTrainer) -> Measured:
    """Run micro-batches, the first of which warms up and is the largest."""
    model: Any = trainer.model
    if trainer.args.gradient_checkpointing:
        # The second is the only name before transformers 5.20, and deprecated since.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)(trainer.args.gradient_checkpointing_kwargs)
    runs = [_run(trainer, examples) for examples in batches]
    tokens = sum(run[0] for run in runs[1:])
    step, forward = (sum(run[which] for run in runs[1:]) / tokens for which in (1, 2))
    return Measured(step, forward, runs[0][3])


def _run(trainer: RunTrainer, examples: Sequence[Example]) -> tuple[int, float, float, int]:
    """Return tokens, seconds of forward and backward, seconds of forward, and S * T."""
    inputs = trainer._prepare_inputs(trainer.data_collator(examples))
    model: Any = trainer.model
    step = _seconds(trainer, model, inputs, nullcontext())
    forward = _seconds(trainer, model, inputs, torch.no_grad())
    model.zero_grad(set_to_none=True)
    tokens = sum(tokens_of(example.row) for example in examples)
    return tokens, step, forward, inputs["input_ids"].numel()


def _seconds(
    trainer: RunTrainer, model: nn.Module, inputs: Any, context: AbstractContextManager[Any]
) -> float:
    """Return the time of a forward, and of its backward if `context` allows one."""
    model.train()
    start = time.perf_counter()
    with context, trainer.accelerator.autocast():
        loss: Any = trainer.compute_loss(model, inputs)
    if loss.requires_grad:
        loss.backward()
    # Read, so that a GPU has done its work.
    loss.item()
    return time.perf_counter() - start


def memory(trainer: RunTrainer, measured: Measured) -> Iterator[str]:
    """Yield the estimate of memory, and the peak of what was tried."""
    known = estimate(trainer, trainer.trial_reference(), measured.rows)
    parts = [f"{what} {'unknown' if size is None else _gib(size)}" for what, size in known.items()]
    total = _gib(sum(size or 0 for size in known.values()))
    yield f"memory, without activations: {total} GiB ({', '.join(parts)})"
    yield (
        f"peak of the steps tried, the largest micro-batch among them: {_gib(peak_memory())} GiB; "
        "the optimizer's states come on top"
    )


def _time(trainer: RunTrainer, measured: Measured, steps: int) -> Iterator[str]:
    args, reference = trainer.args, trainer.trial_reference()
    train, held_out = (
        sum(tokens_of(row) for dataset in each_dataset(one) for row in dataset.rows)
        for one in (trainer.train_dataset, trainer.eval_dataset)
    )
    prompts = steps * args.train_batch_size * args.gradient_accumulation_steps
    tokens = train * min(prompts / len(trainer.train_dataset), steps / steps_of_epoch(trainer))
    training = tokens * measured.step
    evaluations = evaluations_of(trainer, steps)
    yield f"training: about {duration(training)} ({1 / measured.step:.0f} tokens per second)"
    evaluating = evaluations * held_out * measured.forward
    yield f"evaluations: {evaluations}, about {duration(evaluating)}"
    scoring = (train + held_out) * measured.forward if reference is not None else 0.0
    if reference is not None:
        yield f"reference log-probs: not computed now, about {duration(scoring)}"
    in_all = duration(training + evaluating + scoring)
    yield f"in all about {in_all}, without the optimizer's steps"


def steps_of_epoch(trainer: RunTrainer) -> int:
    """Return the optimizer steps of an epoch of transformers."""
    batches = len(trainer.get_train_dataloader())
    return max(math.ceil(batches / trainer.args.gradient_accumulation_steps), 1)


def _steps(trainer: RunTrainer) -> int:
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    return math.ceil(args.num_train_epochs * steps_of_epoch(trainer))


def evaluations_of(trainer: RunTrainer, steps: int) -> int:
    """Return how often a run of `steps` steps evaluates."""
    args = trainer.args
    if trainer.eval_dataset is None or args.eval_strategy == IntervalStrategy.NO:
        return 0
    every = steps_of_epoch(trainer)
    if args.eval_strategy == IntervalStrategy.STEPS:
        given = float(args.eval_steps or args.logging_steps)
        every = math.ceil(given * steps) if given < 1 else int(given)
    return math.ceil(steps / every) + bool(args.eval_on_start)


def tokens_of(row: TokenizedRow) -> int:
    """Return the tokens that the model reads of a record: the prompt with each response."""
    return sum(len(row.prompt) + len(response) for response in row.responses)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def duration(seconds: float) -> str:
    """Return seconds as text, in the unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
