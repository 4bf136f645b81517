"""t0, the start that all prompts share: found, checked on all data, kept with the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rao_kernels.errors import DataError, InputError
from tests.train.test_trainer import trainer
from tests.train.tiny import tiny_rows


def rows(*prompts: str) -> list[dict[str, Any]]:
    return [{"prompt": p, "responses": ["ab", "c"], "rewards": [1.0, 0.0]} for p in prompts]


def prompt_logps(run: Any) -> list[float]:
    return [reference.prompt for reference in run.train_dataset.references]


def test_auto_is_the_longest_start_of_training_and_evaluation_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(tmp_path / "a", tiny_rows(5), prefix_length="auto")
    assert "t0: the first 5 tokens" in capsys.readouterr().out
    assert prompt_logps(run) == prompt_logps(trainer(tmp_path / "b", tiny_rows(5), prefix_length=5))
    both = {"x": rows("say a"), "y": rows("saw b")}
    run = trainer(tmp_path / "c", tiny_rows(5), prefix_length="auto", eval_dataset=both)
    assert "t0: the first 3 tokens" in capsys.readouterr().out
    assert prompt_logps(run) == prompt_logps(trainer(tmp_path / "d", tiny_rows(5), prefix_length=3))
    assert run.evaluate()["eval_x_loss"] > 0


def test_one_prompt_is_t0_as_a_whole(tmp_path: Path) -> None:
    run = trainer(tmp_path, rows("say a", "say a"), prefix_length="auto")
    assert prompt_logps(run) == [0.0, 0.0]
    run.train()
    assert run.state.log_history[0]["loss"] > 0


def test_other_data_must_begin_the_same(tmp_path: Path) -> None:
    run = trainer(tmp_path, rows("say a", "say b"), prefix_length="auto")
    assert run.evaluate(rows("say c", "say d"))["eval_loss"] > 0
    with pytest.raises(DataError, match="one t0 of 5 tokens"):
        run.evaluate(rows("ask c", "say d"))
    with pytest.raises(DataError, match="one t0 of 2 tokens"):
        trainer(tmp_path, rows("say a"), prefix_length=2, eval_dataset=rows("ask a"))
    with pytest.raises(DataError, match="one t0 of 9 tokens"):
        trainer(tmp_path, rows("say a", "say b"), prefix_length=9)


def test_a_loss_without_prompts_has_no_t0(tmp_path: Path) -> None:
    run = trainer(tmp_path, rows("say a", "ask b"), loss="sigmoid", prefix_length=4)
    run.train()
    assert "loss" in run.state.log_history[0]


def test_a_resumed_run_keeps_t0(tmp_path: Path) -> None:
    """Other held-out prompts would change it; `prefix_length` as it was keeps it."""
    data = rows("say ab", "say ac")
    saved = {"save_strategy": "steps", "save_steps": 1, "prefix_length": "auto"}
    trainer(tmp_path, data, **saved).train()
    folder = str(tmp_path / "checkpoint-1")
    other = trainer(tmp_path, data, **saved, eval_dataset=rows("say b"))
    with pytest.raises(InputError, match="prefix_length is 5, was 6"):
        other.train(resume_from_checkpoint=folder)
    trainer(tmp_path, data, **saved, eval_dataset=rows("say abc")).train(
        resume_from_checkpoint=folder
    )
