"""`rao-kernels online`: align a model on responses that it samples while it trains.

Records have a `prompt`; other columns reach the source of rewards, and GRAO reads `gold`. The
output folder gets the trained model, its checkpoints, metrics.jsonl, run.png, and in rollouts/ what
was sampled in each round. The same command again goes on with a run that was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import TrainerCallback

from ..data import RecordSource
from ..errors import InputError
from ..train import OnlineConfig, OnlineTrainer
from ..train.model import find_tokenizer, load_model
from .arguments import ModelArguments, ReferenceArguments, RunArguments, lora_config
from .dry_run_online import report
from .options import parse_options
from .scorer_options import ScorerOptions, check_scorer, make_scorer
from .shape_options import ShapeArguments
from .training import run_training


@dataclass
class PromptArguments:
    """The prompts to train on and to evaluate with."""

    data: list[str] = field(
        metadata={"help": "Files of records with prompts (.jsonl, .jsonl.gz, .parquet)."}
    )
    eval_data: list[str] | None = field(
        default=None, metadata={"help": "Files of held-out prompts, for eval_strategy."}
    )


TYPES = [
    *(ModelArguments, PromptArguments, ShapeArguments, ScorerOptions),
    *(ReferenceArguments, RunArguments, OnlineConfig),
]


def run(argv: Sequence[str]) -> None:
    """Parse the options, train, and print a summary."""
    parsed = parse_options("rao-kernels online", TYPES, argv)
    model, prompts, shapes, rewards, reference, how, config = parsed
    options, held_out = shapes.options(), prompts.eval_data
    check_scorer(rewards)
    if held_out is None and config.eval_strategy != "no":
        got = repr(config.eval_strategy.value)
        raise InputError("eval_strategy", "'no' without held-out prompts", got, "Give --eval_data.")

    def make(callbacks: Sequence[TrainerCallback]) -> OnlineTrainer:
        return OnlineTrainer(
            load_model(model.model, getattr(torch, model.dtype)),
            reference.ref_model,
            config,
            scorer=make_scorer(rewards),
            train_dataset=RecordSource(prompts.data, options),
            eval_dataset=None if held_out is None else RecordSource(held_out, options),
            processing_class=find_tokenizer(model.model),
            peft_config=lora_config(model),
            callbacks=callbacks,
        )

    run_training("online", config, make, argv=argv, dry_run=how.dry_run, report=report)
