"""`rao-kernels reward-model`: train a reward model on pairs (Bradley-Terry).

Records are pairs, or prompts with several rewarded responses, in .jsonl, .jsonl.gz or .parquet
files. The output folder gets the reward model, its checkpoints, metrics.jsonl, run.png and, from
the held-out pairs, reward_model.json and reward_model.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from ..data import RecordSource
from ..train import RewardConfig, RewardTrainer
from ..train.model import load_tokenizer
from ..train.reward.data import as_format, prepare_pairs
from ..train.reward.trainer import load_reward_model
from .arguments import DataArguments, ModelArguments, RunArguments, lora_config, record_sources
from .held_out import evaluation_data
from .options import parse_options
from .shape_options import ShapeArguments
from .training import run_training

TYPES = [ModelArguments, DataArguments, ShapeArguments, RunArguments, RewardConfig]


def run(argv: Sequence[str]) -> None:
    """Parse the options, train, and print a summary."""
    model, data, shapes, how, config = parse_options("rao-kernels reward-model", TYPES, argv)
    records = record_sources(data, shapes)

    def make(callbacks: Sequence[TrainerCallback]) -> RewardTrainer:
        return _make_trainer(model, data, config, records, callbacks)

    run_training("reward-model", config, make, argv=argv, dry_run=how.dry_run)


def _make_trainer(
    model: ModelArguments,
    data: DataArguments,
    config: RewardConfig,
    records: tuple[RecordSource, RecordSource | None],
    callbacks: Sequence[TrainerCallback],
) -> RewardTrainer:
    train, held_out = records
    tokenizer = load_tokenizer(model.model)

    def prepare(records: RecordSource) -> Any:
        return prepare_pairs(records, "evaluation data", config, as_format(tokenizer, config))

    evaluation = evaluation_data(held_out, data, config, prepare)
    return RewardTrainer(
        load_reward_model(model.model, model.dtype, config.seed),
        args=config,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        peft_config=lora_config(model, "SEQ_CLS"),
        callbacks=callbacks,
    )
