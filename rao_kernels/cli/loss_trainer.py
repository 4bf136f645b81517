"""The `RAOTrainer` of a command: `train`, `sft` and `cache-ref` make it from the same options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..data import PreferenceDataset, RecordSource
from ..data.collate import Example
from ..train import RAOConfig, RAOTrainer
from ..train.config import check_runnable
from ..train.model import load_model, load_tokenizer
from ..train.prepare import Datasets, prepare_dataset
from .arguments import DataArguments, ModelArguments, lora_config
from .held_out import evaluation_data

if TYPE_CHECKING:
    from transformers import TrainerCallback


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

    def prepare(records: RecordSource) -> Any:
        return prepare_dataset(records, "evaluation data", config, tokenizer)

    evaluation = evaluation_data(held_out, data, config, prepare)
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
