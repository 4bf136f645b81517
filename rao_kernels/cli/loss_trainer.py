"""The `RAOTrainer` of a command: `train`, `sft` and `cache-ref` make it from the same options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import IntervalStrategy
from transformers.trainer_utils import SaveStrategy

from ..data import PreferenceDataset, RecordSource
from ..data.collate import Example
from ..data.records import NoRowsError
from ..data.transforms import SingleRecordError
from ..errors import InputError
from ..train import RAOConfig, RAOTrainer
from ..train.config import check_runnable
from ..train.model import load_model, load_tokenizer
from ..train.prepare import Datasets, prepare_dataset
from .arguments import DataArguments, ModelArguments, lora_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerCallback


def make_loss_trainer(
    model: ModelArguments,
    data: DataArguments,
    config: RAOConfig,
    records: tuple[RecordSource, RecordSource | None],
    *,
    ref_model: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    trainer_class: type[RAOTrainer] = RAOTrainer,
) -> RAOTrainer:
    """Load the model and make its trainer.

    records: those to train on and those held out, of `arguments.record_sources`.
    """
    # Before the held-out records are prepared: what they lack may be what this loss cannot have.
    check_runnable(config)
    train, held_out = records
    tokenizer = load_tokenizer(model.model)
    evaluation: Any = held_out
    if data.eval_data is None:
        evaluation = _held_out_part(held_out, data, config, tokenizer)
    if evaluation is None:
        config.eval_strategy, config.eval_on_start = IntervalStrategy.NO, False
    elif config.eval_strategy == IntervalStrategy.NO:
        config.eval_strategy, config.eval_on_start = IntervalStrategy.EPOCH, True
    return trainer_class(
        load_model(model.model, getattr(torch, model.dtype)),
        ref_model,
        args=config,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        peft_config=lora_config(model),
        callbacks=callbacks,
    )


class UnscoredTrainer(RAOTrainer):
    """A `RAOTrainer` for a dry run: the reference scores only the records it is asked for."""

    def _add_references(self, *given: Datasets) -> None:
        scorer, self._scorer = self._scorer, None
        super()._add_references(*given)
        self._scorer = scorer

    def trial_reference(self) -> nn.Module | None:
        return None if self._scorer is None else self._scorer.model

    def trial_examples(self, indices: Sequence[int]) -> list[Example]:
        sample = PreferenceDataset([self.train_dataset[index].row for index in indices])
        if self._scorer is not None:
            self._scorer.attach(sample, self._prefix_length or 1)
        return [sample[index] for index in range(len(sample))]


def _held_out_part(
    records: RecordSource | None,
    arguments: DataArguments,
    config: RAOConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> PreferenceDataset | None:
    """Make the dataset of the records held out by default; None and a warning if none is usable.

    Raises:
        InputError: none is usable, and the settings need evaluations.
    """
    if records is None:
        if config.eval_strategy != IntervalStrategy.NO:
            got = repr(IntervalStrategy(config.eval_strategy).value)
            raise InputError(
                "eval_strategy", "'no' without held-out records", got, "Give --eval_data."
            )
        return None
    try:
        return prepare_dataset(records, "evaluation data", config, tokenizer)
    except (NoRowsError, SingleRecordError) as error:
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
