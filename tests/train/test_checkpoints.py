"""Interrupted runs: what is complete, what is taken, and that the numbers come out the same."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback

from rao_kernels.train import RAOConfig, RAOTrainer, checkpoints
from tests import seeds
from tests.train.tiny import save_tiny, tiny_rows


class Stop(TrainerCallback):
    """Ends the run as a crash would: no final save, no end of training."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def make_trainer(
    folder: Path,
    model: Path,
    *,
    stop: int | None = None,
    lora: bool = False,
    tolerance: float = 0.0,
) -> RAOTrainer:
    config = RAOConfig(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=2,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=3,
        grad_tolerance=tolerance,
        disable_tqdm=True,
        use_cpu=True,
        seed=seeds.shifted(42),
    )
    return RAOTrainer(
        str(model),
        args=config,
        train_dataset=tiny_rows(11),
        eval_dataset=tiny_rows(3),
        peft_config=LoraConfig(r=2, target_modules="all-linear") if lora else None,
        callbacks=[] if stop is None else [Stop(stop)],
    )


@pytest.mark.parametrize(
    ("stop", "lora", "tolerance"),
    [(3, False, 0.0), (5, False, 0.0), (3, True, 0.0), (5, True, 0.0), (3, False, 0.9)],
)
def test_resumed_run_is_bit_equal(tmp_path: Path, stop: int, lora: bool, tolerance: float) -> None:
    """Six steps of two epochs, broken in the first epoch or in the second, with evaluations."""
    model = save_tiny(tmp_path / "model")
    make = partial(make_trainer, model=model, lora=lora, tolerance=tolerance)
    straight = make(tmp_path / "straight")
    straight.train()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "broken", stop=stop).train()
    broken = tmp_path / "broken"
    assert checkpoints.newest_complete(broken) == broken / f"checkpoint-{stop - 1}"
    resumed = make(broken)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == straight.state.global_step == 6
    assert resumed.hyper == straight.hyper
    expected = dict(straight.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    steps = [
        [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
        for folder in (broken, tmp_path / "straight")
    ]
    assert steps[0] == steps[1]


def test_output_loads_in_transformers(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    for lora, loader in ((False, AutoModelForCausalLM), (True, AutoPeftModelForCausalLM)):
        out = tmp_path / f"out-{lora}"
        run = make_trainer(out, model, lora=lora)
        run.train()
        run.save_model()
        ids = torch.arange(5, 15)[None]
        for folder in (out, checkpoints.newest_complete(out)):
            loaded = loader.from_pretrained(folder)
            torch.testing.assert_close(
                loaded(input_ids=ids).logits, run.model(input_ids=ids).logits
            )
        assert (out / "run.png").read_bytes()[:4] == b"\x89PNG"
        assert [path.name for path in checkpoints.all_checkpoints(out)] == [
            "checkpoint-4",
            "checkpoint-6",
        ]


def test_half_written_checkpoint_is_none(tmp_path: Path) -> None:
    good, other = tmp_path / "checkpoint-9", tmp_path / "checkpoint-10"
    for folder in (good, other):
        (folder / "sub").mkdir(parents=True)
        (folder / "weights").write_bytes(b"12345")
        (folder / "sub" / "state").write_bytes(b"1")
        assert not checkpoints.is_complete(folder)
        checkpoints.mark_complete(folder)
    assert checkpoints.newest_complete(tmp_path) == other
    (other / "weights").write_bytes(b"123")
    assert checkpoints.newest_complete(tmp_path) == good
    (other / checkpoints.MARKER).write_text("{")
    assert checkpoints.newest_complete(tmp_path) == good
    shutil.rmtree(good / "sub")
    assert checkpoints.newest_complete(tmp_path) is None


def test_rotation_keeps_complete_ones_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step != 5:
            checkpoints.mark_complete(tmp_path / f"checkpoint-{step}")
    checkpoints.rotate(tmp_path, None, None)
    assert len(checkpoints.all_checkpoints(tmp_path)) == 5
    checkpoints.rotate(tmp_path, 2, str(tmp_path / "checkpoint-1"))
    left = [path.name for path in checkpoints.all_checkpoints(tmp_path)]
    assert left == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
