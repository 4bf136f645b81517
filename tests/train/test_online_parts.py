"""Parts of an online round: order of prompts, PPO's advantages, win rates, files, settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rao_kernels.errors import DataError, InputError
from rao_kernels.train import OnlineConfig
from rao_kernels.train.online.checks import check_online
from rao_kernels.train.online.prompts import load_prompts
from rao_kernels.train.online.returns import (
    advantages_and_returns,
    token_rewards,
    whiten,
    win_rates,
)
from rao_kernels.train.online.rollouts import Rollout, RoundFiles
from rao_kernels.train.online.rows import examples_of
from rao_kernels.train.online.schedule import Schedule
from tests import seeds
from tests.train.online_tools import config
from tests.train.tiny import tiny_tokenizer


def schedule(**changes: Any) -> Schedule:
    settings = {
        "prompts": 10,
        "round_size": 4,
        "batch": 1,
        "ranks": 2,
        "inner_epochs": 2,
        "steps_per_round": 4,
        "seed": 3,
        "shuffled": True,
    }
    return Schedule(**{**settings, **changes})


def test_rounds_take_every_prompt_once_per_pass() -> None:
    taken = [prompt for number in range(5) for prompt in schedule().prompts_of(number)]
    first, second = taken[:10], taken[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second and first != list(range(10))
    assert schedule(seed=4).prompts_of(0) != schedule().prompts_of(0)
    assert schedule(shuffled=False).prompts_of(2) == [8, 9, 0, 1]


def test_ranks_share_the_micro_batches_of_one_process() -> None:
    alone = schedule(batch=2, ranks=1)
    ranks = [schedule().batches_of(7, rank) for rank in (0, 1)]
    joined = [own + other for own, other in zip(*ranks, strict=True)]
    assert joined == alone.batches_of(7, 0)
    assert [len(batch) for batch in joined] == [2] * alone.micro_batches
    for half in (joined[:2], joined[2:]):
        assert sorted(position for batch in half for position in batch) == [0, 1, 2, 3]
    assert [*schedule().share(0), *schedule().share(1)] == [0, 1, 2, 3]
    assert schedule().sampling_seed(0, 0) != schedule().sampling_seed(0, 1)


def test_advantages_are_the_sum_of_discounted_errors() -> None:
    generator = seeds.generator()
    rewards, values = (torch.randn(7, generator=generator, dtype=torch.float64) for _ in "rv")
    gamma, lam = 0.9, 0.7
    advantages, returns = advantages_and_returns(rewards, values, gamma=gamma, gae_lambda=lam)
    after = [*values[1:].tolist(), 0.0]
    errors = [float(rewards[t] + gamma * after[t] - values[t]) for t in range(7)]
    expected = [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, 7)) for t in range(7)]
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(returns, advantages + values)
    # With lambda 1 the returns are the discounted rewards themselves.
    _, returns = advantages_and_returns(rewards, values, gamma=gamma, gae_lambda=1.0)
    sums = [sum(gamma ** (k - t) * float(rewards[k]) for k in range(t, 7)) for t in range(7)]
    torch.testing.assert_close(returns, torch.tensor(sums, dtype=torch.float64))


def test_kl_is_part_of_the_reward_of_each_token() -> None:
    old, reference = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -1.0, -0.5])
    rewards = token_rewards(2.0, old, reference, 0.1)
    torch.testing.assert_close(rewards, torch.tensor([-0.05, 0.1, 2.0], dtype=torch.float64))
    assert token_rewards(2.0, old, None, 0.0).tolist() == [0.0, 0.0, 2.0]


def test_whitening_is_over_all_responses() -> None:
    parts = [torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([6.0]).double()]
    white = torch.cat(whiten(parts))
    assert float(white.mean()) == pytest.approx(0, abs=1e-12)
    assert float(white.square().mean()) == pytest.approx(1)
    assert torch.cat(whiten([torch.ones(3).double()])).tolist() == [0, 0, 0]


def test_win_rates_count_ties_as_half() -> None:
    assert win_rates([0.0, 5.0, 5.0]) == [0.0, 0.75, 0.75]
    assert win_rates([1.0, 1.0]) == [0.5, 0.5]


def rollout(rewards: list[float], **changes: Any) -> Rollout:
    count = len(rewards)
    made = Rollout(
        prompt="say b",
        prompt_ids=[1, 6, 7],
        responses=["ab"] * count,
        response_ids=[[5 + j, 6, 2] for j in range(count)],
        rewards=rewards,
        finished=[j != 1 for j in range(count)],
        where="p.jsonl:1",
        columns={"answer": 7},
        old_token_logps=[[-0.1 * j, -1 / 3, -0.7] for j in range(count)],
        ref_token_logps=[[-0.2, -1 / 7, -0.3 * j] for j in range(count)],
        ref_prompt_logp=-1.25,
    )
    return replace(made, **changes)


def test_files_keep_every_bit(tmp_path: Path) -> None:
    values = [[float(x) for x in torch.randn(3, generator=seeds.generator())] for _ in "ab"]
    rounds = [rollout([0.1, 0.2], old_values=values), rollout([1.0, 1 / 3], gold_ids=[4, 2])]
    files = RoundFiles(tmp_path)
    files.write(3, rounds, {"scorer": {"rule": "x"}})
    found, sha = files.read(3)
    assert [replace(one, columns={"answer": 7}) for one in found] == rounds
    assert found[0].columns == {"answer": 7, "scorer": {"rule": "x"}}
    assert files.read(3, sha)[0] == found
    with pytest.raises(InputError, match="changed"):
        files.read(3, "0" * 64)
    with pytest.raises(InputError, match=r"round-00004\.jsonl"):
        files.read(4)


def test_pairs_are_best_and_worst_with_their_references(tmp_path: Path) -> None:
    args = config(tmp_path, loss="dpo")
    untied, tied = examples_of([rollout([0.5, 0.0, 1.0]), rollout([1.0, 1.0, 1.0])], args)
    row, reference = untied.example.row, untied.example.reference
    assert untied.counted and not tied.counted
    assert [ids.tolist() for ids in row.responses] == [[7, 6, 2], [6, 6, 2]]
    assert row.preferred == [True, False]
    assert reference is not None and reference.prompt == -1.25
    torch.testing.assert_close(
        reference.responses,
        torch.tensor([-0.2 - 1 / 7 - 0.6, -0.2 - 1 / 7 - 0.3], dtype=torch.float64),
    )
    assert tied.example.row.preferred == [True, False]


def test_losses_of_probabilities_get_win_rates(tmp_path: Path) -> None:
    (found,) = examples_of([rollout([7.0, -3.0, 9.0])], config(tmp_path, loss="sppo"))
    assert found.example.row.rewards == [0.5, 0.0, 1.0]


def test_truncated_responses_can_be_left_out(tmp_path: Path) -> None:
    (found,) = examples_of([rollout([1.0, 0.0])], config(tmp_path, mask_truncated_completions=True))
    masks = found.example.row.masks
    assert masks is not None
    assert [mask.tolist() for mask in masks] == [[True] * 3, [False] * 3]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"inner_epochs": 0}, "inner_epochs"),
        ({"gae_lambda": 1.1}, "gae_lambda"),
        ({"rounds": 3, "max_steps": 4}, "max_steps"),
        ({"max_length": 6}, "max_length"),
    ],
)
def test_settings_out_of_range_are_named(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=f"^`{named}`"):
        config(tmp_path, **changes)


def test_a_round_has_whole_steps(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiple of 4"):
        _ = config(tmp_path, prompts_per_round=6, gradient_accumulation_steps=2).round_size
    assert config(tmp_path, prompts_per_round=None).round_size == 2


def test_prompts_name_what_they_lack(tmp_path: Path) -> None:
    def load(rows: list[dict[str, Any]], **changes: Any) -> Any:
        return load_prompts(rows, "prompts", config(tmp_path, **changes), tiny_tokenizer())

    with pytest.raises(DataError, match="^row 1"):
        load([{"prompt": "a"}, {"prompt": ""}])
    with pytest.raises(DataError, match="gold"):
        load([{"prompt": "a"}], loss="grao")
    with pytest.raises(DataError, match="leaves 14 beside max_new_tokens=6"):
        load([{"prompt": "a" * 20}], max_length=20)
    found = load([{"prompt": "ab", "rewards": [1], "responses": ["x"], "answer": "b"}])
    assert found.prompts[0].columns == {"answer": "b"}
    with pytest.raises(DataError, match="cannot be JSON"):
        load([{"prompt": "a", "answer": object()}])
    assert len(load([{"prompt": "a"}, {"prompt": 3}], bad_rows="skip")) == 1


def test_the_columns_of_a_record_are_json(tmp_path: Path) -> None:
    files = RoundFiles(tmp_path)
    files.write(0, [rollout([1.0, 0.0])], {})
    (line,) = files.path(0).read_text().splitlines()
    record = json.loads(line)
    assert record["answer"] == 7 and record["old_logps"][1] == [-0.1, -1 / 3, -0.7]


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_sharding_by_accelerate_launch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    args = OnlineConfig(str(tmp_path), loss="grpo", report_to=[])
    check_online(args)
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    with pytest.raises(InputError, match=f"^`{name}`.*accelerate launch"):
        check_online(args)
