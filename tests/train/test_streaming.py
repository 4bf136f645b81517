"""`streaming`: the same training from disk, in little memory; runs resume in mid-epoch exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from rao_kernels.data import StoredRows, load_records
from rao_kernels.errors import DataError
from rao_kernels.train import RAOConfig, RAOTrainer, prepare
from tests import seeds
from tests.train.tiny import tiny_model, tiny_rows, tiny_tokenizer, write_jsonl

ROOT = Path(__file__).parents[2]


def config(folder: Path, **changes: Any) -> RAOConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": seeds.shifted(42),
    }
    return RAOConfig(**settings | changes)


def trainer(folder: Path, source: Any, **changes: Any) -> RAOTrainer:
    return RAOTrainer(
        tiny_model(),
        args=config(folder, **changes),
        train_dataset=source,
        processing_class=tiny_tokenizer(),
    )


class StopAt(TrainerCallback):
    """Ends the run after a step, with a checkpoint of it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = control.should_save = state.global_step == self.step


def stop_in_epoch_2(run: RAOTrainer) -> None:
    run.add_callback(StopAt(6))
    run.train()
    assert run.state.global_step == 6
    assert run.state.epoch == 1.5


def weights(run: RAOTrainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.parametrize("loss", ["rao", "sigmoid"])
def test_training_from_disk_is_training_from_memory(tmp_path: Path, loss: str) -> None:
    """Three epochs of four steps in random order; the run from disk stops in the second one."""
    path = write_jsonl(tmp_path / "rows.jsonl", tiny_rows(7, responses=(2, 3)))
    straight = trainer(tmp_path / "memory", path, loss=loss)
    straight.train()
    expected = weights(straight)
    stopped = trainer(tmp_path / "disk", path, loss=loss, streaming=True)
    assert isinstance(stopped.train_dataset.rows, StoredRows)
    stop_in_epoch_2(stopped)
    resumed = trainer(tmp_path / "disk", path, loss=loss, streaming=True)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == straight.state.global_step == 12
    assert_equal(weights(resumed), expected)


def test_run_in_memory_resumes_exactly_in_mid_epoch(tmp_path: Path) -> None:
    straight = trainer(tmp_path / "straight", tiny_rows(7))
    straight.train()
    stopped = trainer(tmp_path / "run", tiny_rows(7))
    stop_in_epoch_2(stopped)
    resumed = trainer(tmp_path / "run", tiny_rows(7))
    resumed.train(resume_from_checkpoint=True)
    assert_equal(weights(resumed), weights(straight))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resets the peak by /proc")
def test_preparing_takes_far_less_memory_than_the_data(tmp_path: Path) -> None:
    """36 MB of text, 144 MB of tokens; what it takes does not grow with them."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.memory_run", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    grown = json.loads(done.stdout.splitlines()[-1])
    size = max(path.stat().st_size for path in tmp_path.glob("run/data/*.arrow"))
    assert size > 140e6
    assert grown["disk"] < size / 4
    assert grown["memory"] > size / 2, "the measure sees data that is in memory"


def test_store_is_used_again_and_made_anew_where_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", tiny_rows(4))
    written = []
    store_rows = prepare.stored_rows.__globals__["store_rows"]

    def spy(*args: Any) -> Any:
        written.append(args)
        return store_rows(*args)

    monkeypatch.setattr("rao_kernels.train.streaming.store_rows", spy)

    def prepared(source: Any = path, **changes: Any) -> int:
        settings = config(tmp_path / "run", streaming=True, **changes)
        tokenizer = tiny_tokenizer(chat=changes.get("prompt_format") == "chat")
        dataset = prepare.prepare_training(source, settings, tokenizer)
        assert dataset is not None
        return len(dataset)

    assert (prepared(), prepared(), prepared([str(path)])) == (4, 4, 4)
    assert len(written) == 1
    prepared(learning_rate=1e-3, loss_kwargs={"beta": 1.0})
    assert len(written) == 1, "neither changes a record"
    assert prepared(loss="sigmoid") == 3, "one prompt has one response"
    prepared(max_length=50)
    prepared(prompt_format="chat")
    prepared(truncate_responses=True)
    assert len(written) == 5
    write_jsonl(path, tiny_rows(5))
    assert prepared() == 5
    assert len(written) == 6


def test_report_of_a_store_is_printed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*tiny_rows(4), {"prompt": "no responses"}])
    printed = []
    for _ in range(2):
        settings = config(tmp_path / "run", streaming=True, max_length=19, bad_rows="skip")
        prepare.prepare_training(path, settings, tiny_tokenizer())
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "responses dropped" in printed[0]
    assert "bad records skipped" in printed[0]


@pytest.mark.parametrize("kind", ["records", "rows", "generator"])
def test_a_store_of_no_file_goes_with_its_rows(tmp_path: Path, kind: str) -> None:
    made: dict[str, Any] = {
        "records": load_records(tiny_rows(3)),
        "rows": tiny_rows(3),
        "generator": iter(tiny_rows(3)),
    }
    settings = config(tmp_path, streaming=True)
    dataset = prepare.prepare_training(made[kind], settings, tiny_tokenizer())
    assert dataset is not None
    assert [row.where for row in dataset.rows] == ["row 0", "row 1", "row 2"]
    assert len(list((tmp_path / "data").iterdir())) == 2
    del dataset
    assert list((tmp_path / "data").iterdir()) == []


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        trainer(tmp_path, tmp_path / "none.jsonl", streaming=True)


def test_dataset_on_disk_is_taken_as_it_is(tmp_path: Path) -> None:
    settings = config(tmp_path, streaming=True)
    dataset = prepare.prepare_training(tiny_rows(6), settings, tiny_tokenizer())
    assert prepare.prepare_training(dataset, settings, tiny_tokenizer()) is dataset
    pairs = config(tmp_path, loss="sigmoid")
    changed = prepare.prepare_training(dataset, pairs, tiny_tokenizer())
    assert changed is not None
    assert changed is not dataset
    assert {len(row.responses) for row in changed.rows} == {2}
