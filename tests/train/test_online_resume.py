"""A run that was stopped within a round goes on to the very same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from rao_kernels.errors import InputError
from rao_kernels.train import OnlineTrainer
from tests.train.online_tools import Letters, make, weights

ROUNDS, STEPS = 4, 4  # steps of a round: 2 passes over 4 prompts by 2


class Killed(Exception):
    """Stands for the end of the process."""


class Kill(TrainerCallback):
    """Ends the run before a step, without a word."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def run(
    folder: Path, *callbacks: TrainerCallback, scorer: Letters | None = None, **changes: Any
) -> OnlineTrainer:
    settings = {"rounds": ROUNDS, "inner_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    given = {"scorer": scorer or Letters()}
    return make(folder, *callbacks, given=given, **{**settings, **changes})


def killed(folder: Path, step: int, **changes: Any) -> None:
    with pytest.raises(Killed):
        run(folder, Kill(step), **changes).train()


def assert_same(one: OnlineTrainer, other: OnlineTrainer) -> None:
    expected = weights(other)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("changes", "step", "sampled"),
    [
        # From checkpoint 6, in round 1: rounds 2 and 3 are sampled.
        ({"loss": "grpo"}, 7, 2),
        # From checkpoint 3, in round 0, while round 1 had begun: rounds 1 to 3.
        ({"loss": "ppo"}, 5, 3),
        # From checkpoint 12, at the end of round 2: round 3, whose reference is of round 2.
        ({"loss": "rao", "refresh_reference_every": 2}, 13, 1),
        # From checkpoint 9, in round 2, whose reference is of its start.
        ({"loss": "dpo", "refresh_reference_every": 1}, 11, 1),
    ],
)
def test_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, changes: dict[str, Any], step: int, sampled: int
) -> None:
    straight = run(tmp_path / "straight", **changes)
    straight.train()
    killed(tmp_path / "killed", step, **changes)
    scorer = Letters()
    resumed = run(tmp_path / "killed", scorer=scorer, **changes)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == ROUNDS * STEPS
    assert len(scorer.seen) == sampled * 4 * 4
    assert_same(resumed, straight)
    assert resumed.hyper == straight.hyper
    for name in (f"round-{number:05d}.jsonl" for number in range(ROUNDS)):
        files = [tmp_path / one / "rollouts" / name for one in ("straight", "killed")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_changed_or_missing_round_is_named(tmp_path: Path) -> None:
    killed(tmp_path, 7)
    path = tmp_path / "rollouts" / "round-00001.jsonl"
    content = path.read_text()
    path.write_text(content.replace('"finished": [false', '"finished": [true', 1))
    with pytest.raises(InputError, match=r"round-00001\.jsonl.*changed"):
        run(tmp_path).train(resume_from_checkpoint=True)
    path.unlink()
    with pytest.raises(InputError, match=r"round-00001\.jsonl"):
        run(tmp_path).train(resume_from_checkpoint=True)


def test_other_settings_are_another_run(tmp_path: Path) -> None:
    killed(tmp_path, 7)
    for changes, named in (
        ({"responses_per_prompt": 3}, "responses_per_prompt"),
        ({"temperature": 0.5}, "temperature"),
    ):
        with pytest.raises(InputError, match=named):
            run(tmp_path, **changes).train(resume_from_checkpoint=True)
    longer = run(tmp_path, rounds=ROUNDS + 1)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == (ROUNDS + 1) * STEPS


def test_references_that_no_checkpoint_needs_are_removed(tmp_path: Path) -> None:
    run(tmp_path, loss="kimi", refresh_reference_every=2, rounds=6, save_total_limit=1).train()
    kept = [path.name for path in (tmp_path / "rollouts").glob("reference-*")]
    assert sorted(kept) == ["reference-00002.safetensors", "reference-00004.safetensors"]
