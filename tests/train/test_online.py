"""`OnlineTrainer`: the reward rises under each loss, and what a round computes for its loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rao_kernels.data import load_records
from rao_kernels.errors import InputError, NotYetError
from rao_kernels.train.online.rollouts import Rollout, RoundFiles
from tests.train.online_tools import PROMPTS, TOKENS, Letters, config, logged, make, weights
from tests.train.tiny import tiny_model

CLIPPED = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "rloo", "cispo")
ITERATED = ("rao", "sppo", "kimi", "dpo")


def rounds_of(folder: Path) -> list[list[Rollout]]:
    files = RoundFiles(folder)
    count = len(list(files.folder.glob("*.jsonl")))
    return [files.read(number)[0] for number in range(count)]


@torch.no_grad()
def direct_logps(model: Any, one: Rollout, temperature: float = 1.0) -> list[torch.Tensor]:
    """Log-probs of the tokens of each response, from the logits of one sequence at a time."""
    found = []
    for ids in one.sequences():
        sequence = torch.tensor([one.prompt_ids + ids])
        logps = (model(input_ids=sequence).logits[0] / temperature).log_softmax(-1)
        rows = logps[len(one.prompt_ids) - 1 : -1]
        found.append(rows.gather(1, torch.tensor(ids)[:, None])[:, 0])
    return found


def assert_logps(found: Any, expected: list[torch.Tensor]) -> None:
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(own), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", [*CLIPPED, "ppo", "grao", *ITERATED])
def test_the_reward_rises(tmp_path: Path, loss: str) -> None:
    trainer = make(
        tmp_path,
        loss=loss,
        rounds=10,
        responses_per_prompt=8,
        per_device_train_batch_size=4,
        inner_epochs=2 if loss == "ppo" else 1,
        refresh_reference_every=1 if loss in ITERATED else 0,
    )
    trainer.train()
    rewards = logged(trainer, "reward/mean")
    assert len(rewards) == 10
    assert sum(rewards[-2:]) / 2 > rewards[0] + 0.3, rewards


@pytest.mark.parametrize("loss", ["grpo", "ppo"])
def test_old_logps_are_those_of_the_sampler(tmp_path: Path, loss: str) -> None:
    trainer = make(tmp_path, loss=loss, rounds=2, inner_epochs=2, temperature=0.7)
    trainer.train()
    ratios = logged(trainer, "ratio/mean")
    assert len(ratios) == 8 and trainer.args.steps_per_round == 4
    for number in (0, 1):
        first, *later = ratios[4 * number : 4 * number + 4]
        assert first == pytest.approx(1.0, abs=1e-6)
        assert any(abs(ratio - 1) > 1e-5 for ratio in later)
    start = tiny_model()
    for one in rounds_of(tmp_path)[0]:
        assert_logps(one.old_token_logps, direct_logps(start, one, 0.7))


def test_samples_follow_the_policy(tmp_path: Path) -> None:
    """The mean log-prob of first tokens is the negative entropy of their distribution."""
    temperature, count = 0.5, 400
    trainer = make(
        tmp_path,
        rounds=1,
        prompts_per_round=1,
        per_device_train_batch_size=1,
        responses_per_prompt=count,
        max_new_tokens=1,
        temperature=temperature,
        learning_rate=0.0,
    )
    trainer.train()
    ((one,),) = rounds_of(tmp_path)
    assert one.old_token_logps is not None
    logps = torch.tensor([values[0] for values in one.old_token_logps])
    with torch.no_grad():
        logits = tiny_model()(input_ids=torch.tensor([one.prompt_ids])).logits[0, -1]
    spread = (logits / temperature).log_softmax(-1)
    mean = float((spread.exp() * spread).sum())
    deviation = float((spread.exp() * (spread - mean).square()).sum().sqrt())
    assert abs(float(logps.mean()) - mean) < 4 * deviation / count**0.5


@pytest.mark.parametrize("every", [0, 1, 2])
def test_the_reference_is_refreshed(tmp_path: Path, every: int) -> None:
    trainer = make(tmp_path, loss="rao", rounds=3, refresh_reference_every=every, log_z0=0.5)
    policies = [weights(trainer)]
    take = trainer._take_round

    def note(*given: Any) -> None:
        policies.append(weights(trainer))
        take(*given)

    trainer._take_round = note  # type: ignore[method-assign]
    trainer.train()
    policies = policies[1:]
    owners = {0: [0, 0, 0], 1: [0, 1, 2], 2: [0, 0, 2]}[every]
    for rollouts, owner in zip(rounds_of(tmp_path), owners, strict=True):
        reference = tiny_model()
        reference.load_state_dict(policies[owner])
        for one in rollouts:
            assert_logps(one.ref_token_logps, direct_logps(reference, one))


def test_an_adapter_s_reference_is_its_base_model(tmp_path: Path) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    given = {"peft_config": lora}
    trainer = make(tmp_path, loss="kimi", rounds=2, given=given)
    trainer.train()
    base = tiny_model()
    for one in rounds_of(tmp_path)[1]:
        assert_logps(one.ref_token_logps, direct_logps(base, one))
    assert logged(trainer, "reward/mean")


def test_a_given_reference_is_asked(tmp_path: Path) -> None:
    make(tmp_path, loss="kimi", rounds=1, given={"ref_model": tiny_model(1)}).train()
    for one in rounds_of(tmp_path)[0]:
        assert_logps(one.ref_token_logps, direct_logps(tiny_model(1), one))
    given = {"ref_model": tiny_model(1)}
    with pytest.raises(InputError, match="ref_model"):
        make(tmp_path, loss="kimi", refresh_reference_every=1, given=given)


def test_log_z0_is_estimated_where_the_reference_samples(tmp_path: Path) -> None:
    for every, fitted in ((0, 0), (1, 2)):
        folder = tmp_path / str(every)
        trainer = make(folder, loss="rao", beta=0.5, rounds=3, refresh_reference_every=every)
        trainer.train()
        rewards = [reward for one in rounds_of(folder)[fitted] for reward in one.rewards]
        assert trainer.hyper["log_z0"] == pytest.approx(sum(rewards) / len(rewards) / 0.5)


def test_grao_learns_from_the_gold_answer(tmp_path: Path) -> None:
    trainer = make(tmp_path, loss="grao", rounds=1)
    trainer.train()
    (rollouts,) = rounds_of(tmp_path)
    for one in rollouts:
        assert one.gold_reward == 5 / TOKENS and one.gold_ids is not None
        assert trainer.processing_class.decode(one.gold_ids) == "aaaaa</s>"
    row = trainer._round.examples[0].example.row
    assert row.gold_marks == [False] * 4 + [True]
    assert row.rewards is not None and row.rewards[-1] == 5 / TOKENS
    assert logged(trainer, "grao/gold_advantage")[0] > 0


def test_groups_without_an_order_teach_nothing(tmp_path: Path) -> None:
    class Constant(Letters):
        def score(self, candidates: Any) -> list[float]:
            return [1.0 for _ in candidates]

    given = {"scorer": Constant()}
    trainer = make(tmp_path, loss="dpo", optim="sgd", given=given, rounds=1)
    before = weights(trainer)
    trainer.train()
    assert logged(trainer, "loss") == [0.0, 0.0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(trainer).items())


def test_records_reach_the_scorer_and_the_file(tmp_path: Path) -> None:
    scorer = Letters()
    trainer = make(tmp_path, rounds=1, given={"scorer": scorer})
    trainer.train()
    (rollouts,) = rounds_of(tmp_path)
    by_prompt = {row["prompt"]: row for row in PROMPTS}
    for one in scorer.seen:
        assert one.columns == {k: by_prompt[one.prompt][k] for k in ("gold", "number")}
        assert one.where.startswith("row ")
    assert any(not one.finished for one in scorer.seen)
    flags = [flag for one in rollouts for flag in one.finished]
    ends = [ids[-1] == 2 for one in rollouts for ids in one.response_ids]
    assert flags == ends == [one.finished for one in scorer.seen]
    records = load_records(RoundFiles(tmp_path).path(0))
    assert [record.rewards for record in records] == [one.rewards for one in rollouts]
    assert [record.responses for record in records] == [one.responses for one in rollouts]


def test_a_round_is_described(tmp_path: Path) -> None:
    trainer = make(tmp_path, rounds=1, loss="grpo", loss_kwargs={"kl_beta": 0.1})
    trainer.train()
    (rollouts,) = rounds_of(tmp_path)
    rewards = torch.tensor([one.rewards for one in rollouts])
    assert logged(trainer, "reward/mean") == [pytest.approx(float(rewards.mean()))]
    assert logged(trainer, "reward/std") == [pytest.approx(float(rewards.std(unbiased=False)))]
    lengths = [len(ids) for one in rollouts for ids in one.response_ids]
    assert logged(trainer, "completions/mean_length") == [
        pytest.approx(sum(lengths) / len(lengths))
    ]
    assert logged(trainer, "completions/kl") == [pytest.approx(0, abs=1e-9)]
    assert 0 < logged(trainer, "completions/entropy")[0] < 4.2
    assert (tmp_path / "run.png").exists()


def test_evaluation_samples_held_out_prompts(tmp_path: Path) -> None:
    trainer = make(
        tmp_path,
        rounds=6,
        responses_per_prompt=8,
        per_device_train_batch_size=4,
        eval_strategy="epoch",
        eval_on_start=True,
        given={"eval_dataset": [{"prompt": f"tell {letter}"} for letter in "xyzuvw"]},
    )
    trainer.train()
    means = logged(trainer, "eval_reward/mean")
    assert len(means) == 7 and means[-1] > means[0] + 0.2
    again = trainer.evaluate()
    assert again["eval_reward/mean"] == means[-1]


def test_passes_over_the_prompts_set_the_length(tmp_path: Path) -> None:
    trainer = make(tmp_path, rounds=None, num_train_epochs=2, learning_rate=0.0)
    trainer.train()
    assert trainer.state.global_step == 8  # 14 prompts make 4 rounds of 4, of 2 steps each
    asked = [one.prompt for rollouts in rounds_of(tmp_path) for one in rollouts][: 2 * len(PROMPTS)]
    assert sorted(asked) == sorted([row["prompt"] for row in PROMPTS] * 2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompts_per_round": 3}, "prompts_per_round"),
        ({"loss": "dpo", "responses_per_prompt": 1}, "responses_per_prompt"),
        ({"dataloader_num_workers": 1}, "dataloader_num_workers"),
        ({"loss": "ppo", "loss_kwargs": {"value_coef": 0.0}}, "value_coef"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^`{named}`"):
        make(tmp_path, **changes)


def test_a_loss_that_samples_cannot_feed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotYetError, match="reward_ensemble"):
        make(tmp_path, loss="rpo_pessimistic")


def test_config_is_an_online_one(tmp_path: Path) -> None:
    assert config(tmp_path).ref_per_token


@pytest.mark.parametrize("loss", ["grpo", "dapo"])
def test_on_policy_takes_ratios_as_one(tmp_path: Path, loss: str) -> None:
    """With one step per round nothing but the pass for the sampler's log-probs is left out."""
    found = []
    for on_policy in (False, True):
        folder = tmp_path / str(on_policy)
        hyper = {"on_policy": on_policy}
        trainer = make(folder, loss=loss, loss_kwargs=hyper, per_device_train_batch_size=4)
        trainer.train()
        logps = [one.old_token_logps for round_ in rounds_of(folder) for one in round_]
        assert all((one is None) == on_policy for one in logps)
        found.append((weights(trainer), logged(trainer, "loss")))
    (one, losses), (other, others) = found
    assert losses == pytest.approx(others, abs=1e-5)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    hyper = {"on_policy": True}
    with pytest.raises(InputError, match="^`on_policy`: .*2 steps"):
        make(tmp_path / "two", loss=loss, loss_kwargs=hyper, prompts_per_round=4)
