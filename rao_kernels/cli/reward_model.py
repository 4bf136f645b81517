"""`rao-kernels reward-model`: train a reward model on pairs (Bradley-Terry).

Records are pairs, or prompts with several rewarded responses, in .jsonl, .jsonl.gz or .parquet
files. The output folder gets the reward model, its checkpoints, metrics.jsonl, run.png and, from
the held-out pairs, reward_model.json and reward_model.png.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from transformers import IntervalStrategy, PreTrainedTokenizerBase, TrainerCallback

from ..data import RecordSource
from ..data.records import NoRowsError
from ..errors import InputError
from ..train import RewardConfig, RewardTrainer
from ..train.model import load_tokenizer
from ..train.reward.data import PairDataset, as_format, prepare_pairs
from ..train.reward.trainer import load_reward_model
from .arguments import DataArguments, ModelArguments, RunArguments, lora_config, record_sources
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
    evaluation = _evaluation(held_out, data, config, as_format(tokenizer, config))
    if evaluation is None:
        config.eval_strategy, config.eval_on_start = IntervalStrategy.NO, False
    elif config.eval_strategy == IntervalStrategy.NO:
        config.eval_strategy, config.eval_on_start = IntervalStrategy.EPOCH, True
    return RewardTrainer(
        load_reward_model(model.model, model.dtype, config.seed),
        args=config,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        peft_config=lora_config(model, "SEQ_CLS"),
        callbacks=callbacks,
    )


def _evaluation(
    records: RecordSource | None,
    arguments: DataArguments,
    config: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> PairDataset | None:
    """Return the held-out pairs; None and a warning if the data left none."""
    needed = config.load_best_model_at_end or config.eval_strategy != IntervalStrategy.NO
    problem = "the data left no record for it"
    if records is not None:
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
    if records is not None:
        print(f"warning: training goes on without evaluation: {problem}", file=sys.stderr)
    return None
