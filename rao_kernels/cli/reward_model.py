"""`rao-kernels reward-model`: train a reward model on pairs (Bradley-Terry).

Records are pairs, or prompts with several rewarded responses, in .jsonl, .jsonl.gz or .parquet
files. The output folder gets the reward model, its checkpoints, metrics.jsonl, run.png and, from
the held-out pairs, reward_model.json and reward_model.png.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import IntervalStrategy

from ..data import Record
from ..errors import InputError
from ..train import RewardConfig, RewardTrainer
from ..train.checkpoints import find
from ..train.guards import StopOnInterrupt
from ..train.model import load_tokenizer
from ..train.output_folder import check_unused, check_writable
from ..train.prepare import NoRowsError
from ..train.reward_data import PairDataset, as_format, prepare_pairs
from ..train.reward_trainer import load_reward_model
from .options import parse_options
from .train import (
    RunArguments,
    load_data,
    lora_config,
    resume_from,
    saves_on_interrupt,
    summary,
    where_it_stopped,
)


def run(argv: Sequence[str]) -> None:
    """Parse the options, train, and print a summary."""
    arguments, config = parse_options(
        "rao-kernels reward-model", [RunArguments, RewardConfig], argv
    )
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
        report = trainer.report()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(where_it_stopped(folder, trainer)) from None
    if trainer.is_world_process_zero():
        print(summary(trainer))
        if report is not None:
            print(report.describe())
    trainer.end()  # type: ignore[no-untyped-call]


def _make_trainer(
    arguments: RunArguments, config: RewardConfig, stop: StopOnInterrupt
) -> RewardTrainer:
    train, held_out = load_data(arguments, config)
    tokenizer = load_tokenizer(arguments.model)
    evaluation = _evaluation(held_out, arguments, config, as_format(tokenizer, config))
    if evaluation is None:
        config.eval_strategy, config.eval_on_start = IntervalStrategy.NO, False
    elif config.eval_strategy == IntervalStrategy.NO:
        config.eval_strategy, config.eval_on_start = IntervalStrategy.EPOCH, True
    return RewardTrainer(
        load_reward_model(arguments.model, arguments.dtype, config.seed),
        args=config,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        peft_config=lora_config(arguments, "SEQ_CLS"),
        callbacks=[stop],
    )


def _evaluation(
    records: list[Record], arguments: RunArguments, config: RewardConfig, tokenizer: Any
) -> PairDataset | None:
    """Return the held-out pairs; None and a warning if the data left none."""
    needed = config.load_best_model_at_end or config.eval_strategy != IntervalStrategy.NO
    problem = "the data left no record for it"
    if records:
        try:
            found = prepare_pairs(records, "evaluation data", config, tokenizer)
        except NoRowsError as error:
            if arguments.eval_data:
                raise
            problem = str(error).rstrip(".")
        else:
            assert isinstance(found, PairDataset)
            return found
    if needed:
        fix = "Give --eval_data, or a larger --eval_fraction."
        raise InputError("eval_fraction", "held-out pairs to evaluate with", problem, fix)
    if arguments.eval_fraction:
        print(f"warning: training goes on without evaluation: {problem}", file=sys.stderr)
    return None
