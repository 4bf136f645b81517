"""`--dry_run` of `online`: part of a round is sampled, and one micro-batch of it tried."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..train import OnlineTrainer
from ..train.base import RunTrainer
from ..train.prepare import each_dataset
from .dry_run import (
    SHOWN,
    Measured,
    duration,
    evaluations_of,
    measure,
    memory,
    method,
    shown,
    step_size,
    tokens_of,
)


@dataclass(frozen=True)
class Sampled:
    """Seconds of a prompt with all its responses, and its tokens as the model reads them."""

    seconds: float
    tokens: float


def report(trainer: RunTrainer) -> Iterator[str]:
    """Yield the lines of a dry run; the weights stay as they are."""
    assert isinstance(trainer, OnlineTrainer)
    yield from method(trainer)
    steps = trainer.schedule.total_steps(trainer.args)
    yield from _plan(trainer, steps)
    chosen = trainer.schedule.prompts_of(0)[: _tried(trainer)]
    start = time.perf_counter()
    examples = trainer.trial_examples(chosen)
    sampled = Sampled(
        (time.perf_counter() - start) / len(chosen),
        sum(tokens_of(one.row) for one in examples) / len(examples),
    )
    responses = trainer.args.responses_per_prompt
    yield f"sampled {responses} responses to each of {len(chosen)} prompts, and rewarded them"
    yield from shown([one.row for one in examples[:SHOWN]], trainer)
    examples.sort(key=lambda one: -tokens_of(one.row))
    largest = examples[: trainer.args.train_batch_size]
    measured = measure([largest, largest], trainer)
    yield from memory(trainer, measured)
    yield from _time(trainer, sampled, measured, steps)


def _tried(trainer: OnlineTrainer) -> int:
    """Return the prompts that are sampled to: a batch of sampling, and a micro-batch at least."""
    args = trainer.args
    return min(max(args.sampling_batch_size, args.train_batch_size), args.round_size)


def _plan(trainer: OnlineTrainer, steps: int) -> Iterator[str]:
    args, per_round = trainer.args, trainer.args.steps_per_round
    for what, datasets in (("training", trainer.train_dataset), ("held-out", trainer.eval_dataset)):
        for dataset in each_dataset(datasets):
            tokens = sum(len(row.prompt) for row in dataset.rows)
            yield f"{what} data: {len(dataset)} prompts, {tokens} tokens without responses"
    responses = f"{args.responses_per_prompt} responses of at most {args.max_new_tokens} tokens"
    yield f"rounds: {_rounds(trainer, steps)} of {args.round_size} prompts, {responses} to each"
    yield f"steps: {steps}, {per_round} per round"
    yield step_size(trainer)


def _rounds(trainer: OnlineTrainer, steps: int) -> int:
    return math.ceil(steps / trainer.args.steps_per_round)


def _time(
    trainer: OnlineTrainer, sampled: Sampled, measured: Measured, steps: int
) -> Iterator[str]:
    args = trainer.args
    sampling = _rounds(trainer, steps) * args.round_size * sampled.seconds
    training = steps * args.prompts_per_step * sampled.tokens * measured.step
    evaluations = evaluations_of(trainer, steps)
    held_out = sum(len(dataset) for dataset in each_dataset(trainer.eval_dataset))
    # A held-out prompt gets one response.
    evaluating = evaluations * held_out * sampled.seconds / args.responses_per_prompt
    per_second = args.responses_per_prompt / sampled.seconds
    yield (
        f"sampling, with rewards and log-probs: about {duration(sampling)} "
        f"({per_second:.1f} responses per second)"
    )
    yield f"training: about {duration(training)} ({1 / measured.step:.0f} tokens per second)"
    yield f"evaluations: {evaluations}, about {duration(evaluating)}"
    in_all = duration(sampling + training + evaluating)
    yield f"in all about {in_all} if responses stay as long, without the optimizer's steps"
