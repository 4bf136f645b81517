"""A run goes on only from its own checkpoints, and into a folder that is new or its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from rao_kernels.errors import InputError
from rao_kernels.train import RAOTrainer, checkpoints, identity, output_folder
from tests import seeds
from tests.train.test_trainer import trainer
from tests.train.tiny import tiny_model, tiny_rows

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


def make(folder: Path, rows: Any = None, **changes: Any) -> RAOTrainer:
    return trainer(folder, tiny_rows(7) if rows is None else rows, **SAVING | changes)


def rewarded(value: float) -> list[dict[str, object]]:
    """The same texts, one reward changed."""
    rows = tiny_rows(7)
    return [rows[0] | {"rewards": [value, 0.0]}, *rows[1:]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_identity_is_in_every_checkpoint_and_in_the_folder_from_the_start(tmp_path: Path) -> None:
    run = make(tmp_path, max_steps=1)
    assert identity.read(tmp_path) is None
    run.train()
    folder = tmp_path / "checkpoint-1"
    found = identity.read(folder)
    assert found == identity.read(tmp_path)
    assert (found["loss"], found["hyperparameter beta"]) == ("rao", 0.1)
    assert (found["learning_rate"], found["seed"]) == (1e-2, seeds.shifted(42))
    # Part of what must be there for the checkpoint to be complete.
    assert identity.FILE in json.loads((folder / checkpoints.MARKER).read_text())


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"loss": "sft"}, ['loss is "sft", was "rao"']),
        ({"beta": 0.3}, ["hyperparameter beta is 0.3, was 0.1"]),
        ({"rows": rewarded(0.9)}, ["training data is 7 prompts with 14 responses"]),
        ({"rows": tiny_rows(8)}, ["training data is 8 prompts", "was 7 prompts"]),
        ({"model": tiny_model(1)}, ["model is", "reference is"]),
        ({"learning_rate": 1e-3, "seed": 3}, ["learning_rate is 0.001, was 0.01", "seed is 3"]),
        ({"gradient_accumulation_steps": 2}, ["prompts per step", "is 4, was 2"]),
        ({"peft_config": LoraConfig(target_modules="all-linear")}, ['adapter is ["LORA"]']),
    ],
)
def test_another_run_is_not_resumed(
    tmp_path: Path, changes: dict[str, Any], problems: list[str]
) -> None:
    make(tmp_path).train()
    before = contents(tmp_path)
    for asked in (True, str(tmp_path / "checkpoint-1")):
        with pytest.raises(InputError, match="another output_dir") as error:
            make(tmp_path, **changes).train(resume_from_checkpoint=asked)
        for problem in problems:
            assert problem in str(error.value)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before


def test_adapters_of_other_shape_are_other_runs(tmp_path: Path) -> None:
    make(tmp_path, peft_config=LoraConfig(r=2, target_modules="all-linear")).train()
    other = make(tmp_path, peft_config=LoraConfig(r=4, target_modules="all-linear"))
    with pytest.raises(InputError, match="adapter r is 4, was 2"):
        other.train(resume_from_checkpoint=True)


def test_what_may_change_on_the_way(tmp_path: Path) -> None:
    """Length, logging, saving, how a step is cut into micro-batches, held-out data."""
    make(tmp_path).train()
    longer = make(
        tmp_path,
        max_steps=3,
        logging_steps=2,
        save_steps=3,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        eval_dataset=tiny_rows(9)[7:],
    )
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 3


def test_a_checkpoint_without_identity_is_refused(tmp_path: Path) -> None:
    make(tmp_path).train()
    for folder in checkpoints.all_checkpoints(tmp_path):
        (folder / identity.FILE).unlink()
        checkpoints.mark_complete(folder)
    with pytest.raises(InputError, match=r"with identity\.json.*another output_dir"):
        make(tmp_path).train(resume_from_checkpoint=True)


def test_a_used_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    """With a limit on checkpoints the second run's lower steps were removed as they were saved."""
    make(tmp_path, max_steps=3).train()
    before = contents(tmp_path)
    for other in ({}, {"loss": "sft", "save_total_limit": 1}):
        with pytest.raises(InputError, match="resume_from_checkpoint=True") as error:
            make(tmp_path, **other).train()
        assert "checkpoint-1, checkpoint-2, checkpoint-3, metrics.jsonl" in str(error.value)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    "left", ["metrics.jsonl", "model.safetensors", "adapter_model.safetensors", "rao_state.json"]
)
def test_what_makes_a_folder_used(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("{}")
    with pytest.raises(InputError, match=left):
        make(tmp_path).train()
    with pytest.raises(InputError):
        make(tmp_path).train(resume_from_checkpoint=True)
    assert (tmp_path / left).read_text() == "{}"


def test_the_reference_cache_and_evaluations_do_not_make_it_used(tmp_path: Path) -> None:
    make(tmp_path).evaluate(tiny_rows(3))
    assert (tmp_path / "ref_cache").is_dir()
    assert output_folder.left_by_a_run(tmp_path) == []
    make(tmp_path).train()


def test_one_trainer_may_train_again(tmp_path: Path) -> None:
    run = make(tmp_path, save_strategy="no")
    run.train()
    once = run.model.model.norm.weight.clone()
    run.train()
    assert not torch.equal(run.model.model.norm.weight, once)


def test_new_start_after_a_death_before_the_first_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, save_strategy="no").train()
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(InputError, match="beta is 0.2, was 0.1"):
        make(tmp_path, beta=0.2).train(resume_from_checkpoint=True)
    again = make(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2


def test_a_finished_model_is_not_trained_over(tmp_path: Path) -> None:
    run = make(tmp_path, save_strategy="no")
    run.train()
    run.save_model()
    with pytest.raises(InputError, match=r"trained model \(model.safetensors\)"):
        make(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("own", ["README.md", "config.json"])
def test_files_of_the_users_are_not_overwritten(tmp_path: Path, own: str) -> None:
    (tmp_path / own).write_text("mine")
    with pytest.raises(InputError, match=f"`output_dir`.*files that this one would.*{own}"):
        trainer(tmp_path).train()
    assert (tmp_path / own).read_text() == "mine"


@pytest.mark.parametrize("resume", [None, True])
def test_a_start_that_failed_does_not_block_the_folder(tmp_path: Path, resume: bool | None) -> None:
    """It left its identity, an empty metrics.jsonl and a reference cache, and trained nothing."""
    (tmp_path / "identity.json").write_text('{"learning_rate": 5.0}')
    (tmp_path / "metrics.jsonl").touch()
    run = trainer(tmp_path, max_steps=1)
    run.train(resume_from_checkpoint=resume)
    assert run.state.global_step == 1
    assert identity.read(tmp_path)["learning_rate"] == 1e-2


def test_a_damaged_identity_is_named(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text("{")
    with pytest.raises(InputError, match=r"JSON in .*identity\.json"):
        identity.read(tmp_path)


def test_a_checkpoint_of_another_folder(tmp_path: Path) -> None:
    """It may be continued in a new folder, not in one of another run."""
    make(tmp_path / "a").train()
    make(tmp_path / "b", beta=0.2).train()
    first = str(tmp_path / "a" / "checkpoint-1")
    with pytest.raises(InputError, match="beta is 0.1, was 0.2"):
        make(tmp_path / "b").train(resume_from_checkpoint=first)
    forked = make(tmp_path / "c")
    forked.train(resume_from_checkpoint=first)
    assert [path.name for path in checkpoints.all_checkpoints(tmp_path / "c")] == ["checkpoint-2"]


def test_tokenizer_and_template_count(tmp_path: Path) -> None:
    make(tmp_path).train()
    other = make(tmp_path)
    other.processing_class.chat_template = "{{ messages }}"
    told = identity.describe_run(other, other._scorer, 5)
    assert told is not None
    assert told["chat template"] != identity.read(tmp_path)["chat template"]
    assert told["tokenizer"] == identity.read(tmp_path)["tokenizer"]


def test_output_folder_must_be_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="`output_dir`"):
        make(tmp_path / "file" / "out")
