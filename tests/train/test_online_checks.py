"""What an online run cannot do is said when its trainer is made, not after hours of sampling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rao_kernels.errors import DataError, InputError
from rao_kernels.rewards import Candidate
from rao_kernels.train.online.prompts import load_prompts
from tests.train.online_tools import PROMPTS, Letters, config, logged, make, weights
from tests.train.tiny import tiny_model, tiny_tokenizer


class Numbers(Letters):
    """Rewards that differ between almost all responses."""

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        return [sum(str(one.response).encode()) % 7 / 7 for one in candidates]


def short_model(positions: int) -> GPT2LMHeadModel:
    """A model with a table of so many positions."""
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=positions, **sizes, **ends))


def long_prompts(letters: int) -> list[dict[str, Any]]:
    return [*PROMPTS, {"prompt": "b" * letters, "gold": "a"}]


@pytest.mark.parametrize("which", ["train_dataset", "eval_dataset"])
def test_prompts_that_leave_no_room_are_named(tmp_path: Path, which: str) -> None:
    """The model has 128 positions, of which a response takes 6 and BOS one."""
    make(tmp_path, given={which: long_prompts(121)})
    with pytest.raises(InputError, match="max_new_tokens.* at most 5.*128 positions"):
        make(tmp_path, given={which: long_prompts(122)})


def test_all_models_must_have_room(tmp_path: Path) -> None:
    """The longest prompt and response have 12 tokens."""
    make(tmp_path / "one", loss="kimi", given={"ref_model": short_model(12)})
    with pytest.raises(InputError, match="at most 11, the positions"):
        make(tmp_path / "two", loss="kimi", given={"ref_model": short_model(11)})
    short_model(11).save_pretrained(tmp_path / "values")
    with pytest.raises(InputError, match="at most 11, the positions"):
        make(tmp_path / "three", loss="ppo", value_model=str(tmp_path / "values"))


def test_gold_answers_must_have_room(tmp_path: Path) -> None:
    prompts = [{"prompt": "say b", "gold": "a" * 20}]
    make(tmp_path / "one", loss="grao", model=short_model(27), given={"train_dataset": prompts})
    with pytest.raises(InputError, match="at most 26, the positions"):
        make(tmp_path / "two", loss="grao", model=short_model(26), given={"train_dataset": prompts})


@pytest.mark.parametrize("loss", ["qrpo", "a2po"])
def test_rewards_of_the_reference_are_needed(tmp_path: Path, loss: str) -> None:
    def load(rows: list[dict[str, Any]], **changes: Any) -> Any:
        return load_prompts(rows, "prompts", config(tmp_path, loss=loss, **changes), tokenizer)

    tokenizer = tiny_tokenizer()
    good = {"prompt": "a", "ref_rewards": [0.5, 1.0]}
    assert load([good]).prompts[0].columns["ref_rewards"] == [0.5, 1.0]
    for bad in ({"prompt": "b"}, {"prompt": "b", "ref_rewards": None}):
        with pytest.raises(DataError, match="^row 1: no column `ref_rewards`"):
            load([good, bad])
        assert len(load([good, bad], bad_rows="skip")) == 1


@pytest.mark.parametrize(
    "loss",
    [
        *("bco", "apo_zero_unpaired", "grpo", "dapo", "rloo", "kimi", "dgro", "agro", "sppo"),
        *("dpo", "aot_unpaired", '{"rao": 1, "grpo": 1}'),
    ],
)
def test_losses_that_compare_need_two_responses(tmp_path: Path, loss: str) -> None:
    with pytest.raises(InputError, match="^`responses_per_prompt`: .*at least 2"):
        make(tmp_path, loss=loss, responses_per_prompt=1)


@pytest.mark.parametrize("loss", ["rao", "ppo", "grao", "sft", "qrpo"])
def test_other_losses_learn_from_one_response(tmp_path: Path, loss: str) -> None:
    prompts = [{**row, "ref_rewards": [0.0, 0.1]} for row in PROMPTS]
    given = {"train_dataset": prompts, "scorer": Numbers()}
    trainer = make(tmp_path, loss=loss, responses_per_prompt=1, rounds=1, given=given)
    before = weights(trainer)
    trainer.train()
    assert any(not torch.equal(one, before[name]) for name, one in weights(trainer).items())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ignore_data_skip": True}, "^`ignore_data_skip`: .*resumed within a round"),
        ({"loss": '{"ppo": 1, "grpo": 1}'}, "^`loss`: .*'grpo' beside it"),
        ({"metric_for_best_model": "loss"}, "^`metric_for_best_model`: .*'reward/mean'"),
    ],
)
def test_what_would_go_wrong_is_refused(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        make(tmp_path, **changes)


def test_packing_and_the_value_model_are_part_of_the_run(tmp_path: Path) -> None:
    make(tmp_path / "run", loss="ppo", rounds=1).train()
    with pytest.raises(InputError, match="packing is true, was false"):
        make(tmp_path / "run", loss="ppo", rounds=1, packing=True).train(True)
    values = tiny_model(1)
    values.save_pretrained(tmp_path / "values")
    with pytest.raises(InputError, match="value_model is"):
        make(tmp_path / "run", loss="ppo", rounds=1, value_model=str(tmp_path / "values")).train(
            True
        )


class Ordered(Letters):
    """Rewards of held-out samples follow a given order; the others are as of `Letters`."""

    def __init__(self, held_out: Sequence[float]) -> None:
        super().__init__()
        self.held_out = iter(held_out)

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        if str(candidates[0].prompt).startswith("tell"):
            return [next(self.held_out)] * len(candidates)
        return super().score(candidates)


EVALUATED: dict[str, Any] = {"rounds": 3, "eval_strategy": "epoch", "save_strategy": "epoch"}


def test_the_best_model_has_the_greatest_reward(tmp_path: Path) -> None:
    given = {"scorer": Ordered([0.1, 0.7, 0.2]), "eval_dataset": [{"prompt": "tell x"}]}
    trainer = make(tmp_path, load_best_model_at_end=True, given=given, **EVALUATED)
    trainer.train()
    assert logged(trainer, "eval_reward/mean") == [0.1, 0.7, 0.2]
    assert trainer.state.best_metric == 0.7
    assert str(trainer.state.best_model_checkpoint).endswith("checkpoint-4")


@pytest.mark.parametrize(("rewards", "rate"), [([0.1, 0.2, 0.3], 1e-2), ([0.3, 0.2, 0.1], 1e-4)])
def test_the_rate_falls_where_the_reward_does(
    tmp_path: Path, rewards: list[float], rate: float
) -> None:
    given = {"scorer": Ordered(rewards), "eval_dataset": [{"prompt": "tell x"}]}
    schedule = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0}}
    trainer = make(tmp_path, given=given, **{**EVALUATED, **schedule})
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
