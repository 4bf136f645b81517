"""Responses without a reward: their prompts teach nothing, and values that are none are errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rao_kernels.data import load_records
from rao_kernels.errors import DataError, InputError
from rao_kernels.rewards import Candidate, UnscoredError
from rao_kernels.train.online.metrics import describe_round
from rao_kernels.train.online.rollouts import RoundFiles
from rao_kernels.train.online.rows import examples_of
from tests.train.online_tools import PROMPTS, TOKENS, Letters, config, logged, make, weights
from tests.train.test_online import rounds_of
from tests.train.test_online_parts import rollout


class Failing(Letters):
    """Gives no reward to the first response to each prompt that `fails`.

    times: calls that fail. beside: the reward of the other responses to such a prompt.
    """

    def __init__(
        self, fails: Callable[[str], bool], times: float = float("inf"), beside: float = 0.0
    ) -> None:
        super().__init__()
        self.fails, self.times, self.beside = fails, times, beside

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        found: list[Any] = list(super().score(candidates))
        self.times -= 1
        if self.times < 0:
            return found
        failed = set()
        for number, one in enumerate(candidates):
            if self.fails(str(one.prompt)):
                error = DataError(one.where, "the judge gave no score")
                found[number] = self.beside if one.prompt in failed else error
                failed.add(one.prompt)
        if failed:
            raise UnscoredError(found)
        return found


class Returning(Letters):
    """Returns what `change` makes of the rewards, as a wrong scorer of a user does."""

    def __init__(self, change: Callable[[list[float]], list[float]]) -> None:
        super().__init__()
        self.change = change

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        return self.change(super().score(candidates))


def odd(prompt: str) -> bool:
    return prompt[-1] in "bdfh"


@pytest.mark.parametrize("loss", ["grpo", "ppo", "dpo", "rao"])
def test_prompts_without_rewards_teach_nothing(tmp_path: Path, loss: str) -> None:
    """Micro-batches of one prompt, so that some hold nothing but a prompt without rewards."""
    settings: dict[str, Any] = {"loss": loss, "rounds": 1, "train_sampling_strategy": "sequential"}
    settings |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "optim": "sgd"}
    found = []
    for beside in (0.0, 5.0):
        given = {"scorer": Failing(odd, beside=beside)}
        trainer = make(tmp_path / str(beside), given=given, **settings)
        before = weights(trainer)
        trainer.train()
        assert [one.counted for one in trainer.round_examples] == [False, True, False, True]
        assert logged(trainer, "completions/unscored") == [2.0]
        after = weights(trainer)
        assert any(not torch.equal(after[name], before[name]) for name in after)
        found.append((after, logged(trainer, "loss"), logged(trainer, "reward/mean")))
    (one, *metrics), (other, *others) = found
    assert metrics == others
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_responses_are_asked_about_twice(tmp_path: Path) -> None:
    scorer = Failing(odd, times=1)
    trainer = make(tmp_path, rounds=1, given={"scorer": scorer})
    trainer.train()
    assert logged(trainer, "completions/unscored") == [0.0]
    (rollouts,) = rounds_of(tmp_path)
    again = [one for one in rollouts if odd(str(one.prompt))]
    assert len(scorer.seen) == 16 + len(again) > 16
    for one in rollouts:
        # The first answer about the others of a prompt is kept.
        rewards = [text.count("a") / TOKENS for text in one.responses]
        assert one.rewards == ([rewards[0], 0.0, 0.0, 0.0] if one in again else rewards)


def test_a_round_without_some_rewards_is_kept_and_read(tmp_path: Path) -> None:
    make(tmp_path, rounds=1, given={"scorer": Failing(odd)}).train()
    records = load_records(RoundFiles(tmp_path).path(0))
    (rollouts,) = rounds_of(tmp_path)
    for one, record in zip(rollouts, records, strict=True):
        assert (one.rewards is None) == (record.rewards is None) == odd(str(one.prompt))
        assert one.unscored == ("the judge gave no score" if one.rewards is None else None)


def test_a_round_without_any_reward_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row \d+: .* the judge gave no score"):
        make(tmp_path, rounds=1, given={"scorer": Failing(lambda prompt: True)}).train()
    given = {"scorer": Failing(lambda prompt: True), "eval_dataset": PROMPTS}
    with pytest.raises(DataError, match="the judge gave no score"):
        make(tmp_path / "evaluated", given=given).evaluate()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda found: [*found, 0.0], InputError, r"`scorer`: .*16 numbers.* 17 .*row \d"),
        (lambda found: [*found[:-1], float("nan")], DataError, r"row \d+: its reward is nan"),
        (lambda found: [*found[:-1], 1e30], DataError, r"row \d+: its reward is 1e\+30"),
    ],
)
def test_values_that_are_no_rewards_are_named(
    tmp_path: Path, change: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        make(tmp_path, rounds=1, given={"scorer": Returning(change)}).train()


def test_advantages_are_whitened_over_the_prompts_with_rewards(tmp_path: Path) -> None:
    values = [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]
    known = rollout([1.0, 0.0], old_values=values)
    lost = rollout([9.0, -9.0], old_values=values)
    lost = replace(lost, rewards=None, unscored="no score")
    args = config(tmp_path, loss="ppo")
    (alone,), (_, beside) = examples_of([known], args), examples_of([lost, known], args)
    expected = alone.example.row.token_inputs["advantages"]
    found = beside.example.row.token_inputs["advantages"]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_entropy_and_kl_are_per_token_of_the_responses() -> None:
    short = rollout(
        [1.0],
        entropy=1.0,
        gold_ids=[4, 2],
        old_token_logps=[[-1.0, -1.0, -1.0], [-9.0, -9.0]],
        ref_token_logps=[[-1.0, -1.0, -1.0], [-1.0, -1.0]],
    )
    long = rollout([1.0, 0.0, 0.5], entropy=3.0)
    assert describe_round([short])["completions/kl"] == 0
    assert describe_round([short, long])["completions/entropy"] == pytest.approx(30 / 12)


def test_entropy_is_without_the_gold_answer(tmp_path: Path) -> None:
    """The entropy that a pass finds is the mean over the tokens of the sampled responses."""
    trainer = make(tmp_path, loss='{"grao": 1, "kimi": 1}', rounds=1, refresh_reference_every=1)
    model: Any = trainer.model
    start = {name: one.clone() for name, one in model.state_dict().items()}
    trainer.train()
    model.load_state_dict(start)
    (rollouts,) = rounds_of(tmp_path)
    for one in rollouts:
        entropies = []
        for ids in one.response_ids:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([one.prompt_ids + ids])).logits[0]
            logps = logits.log_softmax(-1)[len(one.prompt_ids) - 1 : -1]
            entropies += (-(logps.exp() * logps).sum(-1)).tolist()
        assert one.entropy == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
