"""The trainer's data: one set of rows to train on, one or several to evaluate on."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from rao_kernels.errors import InputError
from rao_kernels.train import RAOConfig, RAOTrainer
from tests.train.tiny import tiny_model, tiny_rows, tiny_tokenizer


def config(folder: Path) -> RAOConfig:
    return RAOConfig(output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True)


def test_several_splits_are_evaluated_on_and_not_trained_on(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(tiny_rows(6))
    splits = datasets.DatasetDict(train=rows, test=rows.select(range(2)))
    with pytest.raises(InputError, match=r"DatasetDict with the keys \['train', 'test'\]"):
        RAOTrainer(
            tiny_model(),
            args=config(tmp_path),
            train_dataset=splits,
            processing_class=tiny_tokenizer(),
        )
    trainer = RAOTrainer(
        tiny_model(),
        args=config(tmp_path),
        train_dataset=splits["train"],
        eval_dataset=splits,
        processing_class=tiny_tokenizer(),
    )
    assert len(trainer.train_dataset) == 6
    assert {name: len(one) for name, one in trainer.eval_dataset.items()} == {"train": 6, "test": 2}
