"""Labels, hyperparameters and gradients that the trainer gives a loss, alone or in a sum."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rao_kernels.data import (
    PreferenceDataset,
    Record,
    TokenizeOptions,
    tokenize_records,
    unmet_needs,
)
from rao_kernels.errors import DataError, InputError
from rao_kernels.fused import scoring_of
from rao_kernels.losses import LOSSES, fit_log_z0
from rao_kernels.train import RAOTrainer
from rao_kernels.train.config import check_runnable
from tests import seeds
from tests.train.rich import rich_dataset
from tests.train.test_trainer import Gradients, config, dense_inputs, one_batch, trainer
from tests.train.tiny import tiny_model, tiny_rows, tiny_tokenizer

# Rewards from 0 to 1, which are probabilities to the loss that reads them so.
ROWS = tiny_rows(5, responses=(2, 3))


# Inputs that records of prompts, responses and rewards alone do not give.
FURTHER = {"gold", "kl_logps", "old_token_logps", "ref_rewards", "reward_ensemble"}
OF_RECORDS = [name for name in LOSSES if not unmet_needs(LOSSES[name].required_inputs({}))]


def source(name: str) -> Any:
    """Records that the loss can be trained on."""
    needs = FURTHER & set(LOSSES[name].required_inputs({}))
    return rich_dataset(gold="gold" in needs) if needs else ROWS


def gradients(run: RAOTrainer) -> dict[str, Tensor]:
    """Of the loss on all rows, through the trainer's own path."""
    batch = run.data_collator([run.train_dataset[i] for i in range(len(run.train_dataset))])
    units = run._get_num_items_in_batch([batch], torch.device("cpu"))
    run.model.zero_grad()
    run.compute_loss(run.model, batch, num_items_in_batch=units).backward()
    return {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_every_loss_but_ppo_is_trained_from_records(tmp_path: Path) -> None:
    assert set(LOSSES) - set(OF_RECORDS) == {"ppo"}
    with pytest.raises(InputError, match=r"'ppo'.*advantages, returns.*rao-kernels online"):
        trainer(tmp_path, loss="ppo")
    check_runnable(config(tmp_path, loss="ppo"), rollouts=True)


@pytest.mark.parametrize("name", OF_RECORDS)
def test_a_sum_of_one_loss_trains_as_that_loss(tmp_path: Path, cache: Path, name: str) -> None:
    found = []
    for text in (name, json.dumps({name: 1.0})):
        settings = {"ref_per_token": True, "ref_cache_dir": str(cache)}
        run = trainer(tmp_path, source(name), loss=text, **settings)
        with torch.no_grad():
            for index, parameter in enumerate(run.model.parameters()):
                seeds.seed_torch(index)
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        found.append(gradients(run))
    assert found[0].keys() == found[1].keys()
    assert max(float(g.abs().max()) for g in found[0].values()) > 0
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=0, atol=0, msg=key)


def test_sft_beside_a_reward_loss_learns_from_the_preferred_responses(tmp_path: Path) -> None:
    run = trainer(tmp_path, tiny_rows(4), loss='{"rao": 0.0, "sft": 1.0}')
    batch = one_batch(run, 4)
    assert batch["preferred"].tolist() != [True] * len(batch["preferred"])
    inputs = dense_inputs(tiny_model(), batch, tiny_model())
    best = batch["preferred"][inputs.segments]
    expected = float(-inputs.token_logps[best].mean())
    assert expected != pytest.approx(float(-inputs.token_logps.mean()), rel=2e-4)
    assert run.evaluate(tiny_rows(4))["eval_nll_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("key", ["rao.beta", "beta"])
def test_fitted_log_z0_is_of_the_parts_own_beta(tmp_path: Path, key: str) -> None:
    rows = [{**row, "rewards": [r + 4 for r in row["rewards"]]} for row in tiny_rows(5)]
    run = trainer(tmp_path, rows, loss='{"rao": 1, "simpo": 0.1}', loss_kwargs={key: 0.5})
    rewards = [row.rewards for row in run.train_dataset.rows]
    mean = math.fsum(math.fsum(r) / len(r) for r in rewards) / len(rewards)
    assert run.hyper["log_z0"] == pytest.approx(mean / 0.5)
    run.train()
    assert run.state.log_history[0]["rao/log_z0"] == pytest.approx(mean / 0.5)


@pytest.mark.parametrize("method", ["auto", "logmeanexp"])
def test_the_trainer_and_the_function_mean_the_same_estimate(tmp_path: Path, method: str) -> None:
    """On the whole training set as one batch."""
    run = trainer(tmp_path, tiny_rows(6), log_z0=method, beta=0.2)
    batch = one_batch(run, 6)
    inputs = dense_inputs(tiny_model(), batch, tiny_model())
    out = LOSSES["rao"](inputs, beta=0.2, log_z0=method)
    assert run.hyper["log_z0"] == pytest.approx(float(out.metrics["rao/log_z0"]), rel=1e-6)
    expected = fit_log_z0(batch["rewards"], 0.2, batch["groups"], method)  # type: ignore[arg-type]
    assert run.hyper["log_z0"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("key", ["prompt_term", "rao.prompt_term"])
def test_the_prompts_gradient_arrives_in_a_sum(tmp_path: Path, key: str) -> None:
    found = {}
    for loss, kwargs in [
        ("rao", {"prompt_term": "grad"}),
        ('{"rao": 1, "sft": 0}', {key: "grad"}),
        ('{"rao": 1, "sft": 0}', {}),
    ]:
        steps = Gradients()
        folder = tmp_path / str(len(found))
        run = trainer(folder, loss=loss, loss_kwargs=kwargs, callbacks=[steps], max_steps=1)
        run.train()
        found[len(found)] = steps.steps[0]["model.norm.weight"]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-8)
    assert not torch.allclose(found[2], found[0], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("loss", ['{"rao": 1, "sft": 1}', '{"sft": 1, "rao": 1}', "rao"])
def test_evaluation_does_not_depend_on_the_batch(tmp_path: Path, loss: str) -> None:
    """Each part of a sum is a mean over its own units, prompts or tokens."""
    found = []
    for size in (1, 2, 7):
        run = trainer(tmp_path, loss=loss, per_device_eval_batch_size=size)
        found.append(run.evaluate(tiny_rows(7)))
    for name in (name for name in found[0] if "loss" in name):
        values = [one[name] for one in found]
        assert values == pytest.approx([values[0]] * 3, rel=1e-5), name


def test_an_estimate_without_training_data_is_of_the_evaluation_data(tmp_path: Path) -> None:
    found = []
    for size in (1, 7):
        run = RAOTrainer(
            tiny_model(),
            args=config(tmp_path, per_device_eval_batch_size=size),
            eval_dataset=tiny_rows(7),
            processing_class=tiny_tokenizer(),
        )
        found.append(run.evaluate()["eval_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_what_a_loss_leaves_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tiny_rows(3, responses=(4,))
    trainer(tmp_path, rows, loss='{"rao": 1, "simpo": 0.1}')
    assert "6 responses left out (the loss takes the best and the worst" in capsys.readouterr().out
    tied = [{"prompt": "one", "responses": ["a", "b"], "rewards": [0, 0]}]
    trainer(tmp_path, [*rows, *tied], loss='{"rao": 1, "sft": 0.1}')
    assert "1 prompts whose rewards are all equal (every response" in capsys.readouterr().out


def test_a_reference_per_token_is_asked_for_before_scoring(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`ref_per_token`.*True"):
        trainer(tmp_path, loss="dpo", loss_kwargs={"ld_alpha": 0.5})
    assert not (tmp_path / "ref_cache").exists()


@pytest.mark.parametrize("loss", ["bco", "apo_zero_unpaired"])
def test_labels_of_ties(tmp_path: Path, loss: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"prompt": "one", "responses": list("abcd"), "rewards": [1, 1, 0, 1]},
        {"prompt": "two", "responses": list("ab"), "rewards": [0, 0]},
    ]
    run = trainer(tmp_path, rows, loss=loss)
    assert [row.preferred for row in run.train_dataset.rows] == [[True, True, False, True]]
    assert "row 1: dropped, all its rewards are equal" in caplog.text


def test_rewards_read_as_probabilities(tmp_path: Path) -> None:
    rows = [{"prompt": "one", "responses": list("ab"), "rewards": [0.5, 9.5]}]
    with pytest.raises(DataError, match="row 0: reward 1 is 9.5.*'sppo'.*probabilities"):
        trainer(tmp_path, rows, loss="sppo")
    with pytest.raises(DataError, match="row 0: reward 1 is 9.5"):
        trainer(tmp_path, rows, loss='{"sppo": 1, "rao": 1}')


@pytest.mark.parametrize("loss", ["grpo", "dapo", "gspo", "cispo", '{"grpo": 1, "sft": 0.1}'])
def test_policy_ratios_are_refused_on_rows_without_old_log_probs(tmp_path: Path, loss: str) -> None:
    with pytest.raises(DataError, match="old_logps"):
        trainer(tmp_path, loss=loss)
    with pytest.raises(InputError, match="`on_policy`.*sampled before this training"):
        trainer(tmp_path, loss=loss, loss_kwargs={"on_policy": True})


def test_datasets_of_the_callers_own_are_read_as_the_loss_needs(tmp_path: Path) -> None:
    """Rows without labels would train the likelihood of every response."""
    record = Record("one", ["a", "b", "c"], [0.0, 1.0, 0.5], "row 0")
    rows = tokenize_records([record], tiny_tokenizer(), TokenizeOptions())
    run = trainer(tmp_path, PreferenceDataset(rows), loss="sft")
    assert run.train_dataset.rows[0].preferred == [False, True, False]
    best = replace(rows[0], responses=rows[0].responses[1:2], rewards=[1.0])
    found = [run.evaluate(PreferenceDataset(one))["eval_loss"] for one in (rows, [best])]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    run = trainer(tmp_path, PreferenceDataset(rows), loss="dpo")
    assert len(run.train_dataset.rows[0].responses) == 2
    ready = run.train_dataset
    again: Any = trainer(tmp_path, ready, loss="dpo").train_dataset
    assert again is ready
    whole = PreferenceDataset(rows)
    whole.references = ready.references
    with pytest.raises(InputError, match="they have references"):
        trainer(tmp_path, whole, loss="sft")


def test_sums_over_long_responses_lose_nothing() -> None:
    """fp32 rounds a sum of 32,000 log-probs by up to 0.002 nats."""
    run_length = 32_000
    values = -3 * torch.rand(run_length)
    from rao_kernels import SequenceBatch
    from rao_kernels.refcache import RowValues, join_rows

    ids = torch.zeros(1, run_length + 1, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    batch = SequenceBatch.from_padded(ids, mask)
    logps = torch.cat([values, torch.zeros(1)])[None]
    exact = math.fsum(values.tolist())
    inputs = batch.loss_inputs(logps)
    stored = join_rows([RowValues(0.0, inputs.logps, None)])
    assert abs(stored.responses.item() - exact) < 1e-9
    assert stored.prompt.dtype == stored.responses.dtype == torch.float64
    assert abs(float(torch.tensor(exact, dtype=torch.float32)) - exact) > 1e-5


@pytest.mark.parametrize(
    ("loss", "kwargs"),
    [
        ("qrpo", {"quantile_reward": "normal"}),
        ("a2po", {}),
        ("rpo_pessimistic", {}),
        ("tpo", {"length_normalized": True}),
        ("grao", {}),
        ("grao", {"gold_in_statistics": True}),
        ("grpo", {}),
        ("dapo", {}),
        ("gspo", {}),
        ("cispo", {}),
    ],
)
def test_losses_of_further_inputs_train_as_by_hand(
    tmp_path: Path, loss: str, kwargs: dict[str, Any]
) -> None:
    """The first step's loss and gradients, against float64 logits and the loss by hand."""
    steps = Gradients()
    run = trainer(
        tmp_path,
        source(loss),
        loss=loss,
        loss_kwargs=kwargs,
        per_device_train_batch_size=5,
        num_train_epochs=2,
        callbacks=[steps],
    )
    batch = one_batch(run, 5)
    policy, reference = tiny_model().double(), tiny_model().double()
    plain = dense_inputs(policy, batch, reference)
    where = batch["completion_mask"][:, 1:]
    names = ("gold", "ref_rewards", "ref_reward_groups", "reward_ensemble")
    given = {name: batch[name] for name in names if name in batch}
    old = batch["old_token_logps"][:, :-1][where].double()
    expected = run.spec(replace(plain, old_token_logps=old, **given), **run.hyper).loss
    expected.backward()
    run.train()
    found = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert found[0] == pytest.approx(float(expected.detach()), rel=1e-4)
    assert found[1] != pytest.approx(found[0], rel=1e-6)
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None
        error = (steps.steps[0][name] - parameter.grad).norm() / parameter.grad.norm()
        assert float(error) < 1e-3, name


def test_grao_statistics_of_the_command_line(tmp_path: Path) -> None:
    """The paper's Eq. 4, without the gold answer, is the default; JSON chooses the other."""
    found = []
    for given in (None, '{"gold_in_statistics": false}', '{"gold_in_statistics": true}'):
        run = trainer(tmp_path, rich_dataset(gold=True), loss="grao", loss_kwargs=given)
        found.append(float(run.compute_loss(run.model, one_batch(run, 5)).detach()))
    assert found[0] == found[1] != pytest.approx(found[2], rel=1e-3)


def test_values_of_prompts_and_of_tokens_are_not_joined(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="values of prompts, or losses that read values of tokens"):
        scoring_of(LOSSES.combine({"ppo": 1.0, "dro_value": 1.0}), {})
