"""Runs that go wrong say so: numbers that are not finite, losses that rise, rows without order."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback, TrainerState

from rao_kernels.errors import DivergedError
from rao_kernels.train import RAOConfig, RAOTrainer, checkpoints
from rao_kernels.train.guards import DivergenceGuard, rise
from tests.train.test_trainer import trainer
from tests.train.tiny import tiny_rows

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}


class Poison(TrainerCallback):
    """Sets a gradient at one step; 1-based."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step + 1 == self.step:
            given["model"].model.norm.weight.grad.fill_(self.value)


def test_the_step_that_spoils_the_weights_is_the_last(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[Poison(3, float("nan"))], **SAVING)
    with pytest.raises(DivergedError, match="diverged at step 3") as error:
        run.train()
    for part in (
        "model.norm.weight",
        "gradients is nan",
        "1 of 21 trained weights",
        "checkpoint-2",
    ):
        assert part in str(error.value)
    saved = checkpoints.all_checkpoints(tmp_path)
    assert [folder.name for folder in saved] == ["checkpoint-1", "checkpoint-2"]
    again = trainer(tmp_path, **SAVING)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert all(bool(weight.isfinite().all()) for weight in again.model.parameters())


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    """The square of this offset is beyond fp32: the first step already. As an argument it is
    refused before."""
    run = trainer(tmp_path, **SAVING)
    run.hyper["log_z0"] = 1e30
    with pytest.raises(DivergedError, match="step 1: the loss is inf"):
        run.train()
    assert checkpoints.all_checkpoints(tmp_path) == []


def test_a_gradient_norm_that_is_not_finite(tmp_path: Path) -> None:
    """The loss is finite, its gradients are, their squares are not: clipped, the step is 0."""
    run = trainer(tmp_path, loss='{"sft": 1e25}', max_grad_norm=1.0, **SAVING)
    with pytest.raises(DivergedError, match="step 1: the norm of the gradients is inf"):
        run.train()
    assert checkpoints.all_checkpoints(tmp_path) == []


class Enlarge(TrainerCallback):
    """Leaves weights near the largest number after the second step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 2:
            given["model"].model.norm.weight.data.fill_(3e38)


def test_weights_that_are_finite_and_too_large(tmp_path: Path) -> None:
    """They overflow only in the next forward, where the head says so."""
    run = trainer(tmp_path, callbacks=[Enlarge()], **SAVING)
    with pytest.raises(DivergedError, match="diverged at step 3: `hidden`: expected finite values"):
        run.train()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.Parameter(torch.ones(4))
        self.frozen = nn.Parameter(torch.full((4,), float("inf")), requires_grad=False)


def step(tmp_path: Path, model: nn.Module, loss: float = 1.0) -> None:
    guard = DivergenceGuard(lambda values, how: values)
    guard.add_loss(torch.tensor(loss))
    args = RAOConfig(output_dir=str(tmp_path), use_cpu=True)
    guard.on_optimizer_step(args, TrainerState(), None, model=model)  # type: ignore[arg-type]


def test_a_step_skipped_by_loss_scaling_goes_on(tmp_path: Path) -> None:
    """Gradients that overflow leave the weights alone; frozen weights are nobody's step."""
    model, scaler = Model(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.scale((model.kept * 1e38).sum()).backward()
    assert bool(model.kept.grad.isinf().all())
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.kept, torch.ones(4))
    step(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_weights_are_no_divergence(tmp_path: Path, dtype: torch.dtype) -> None:
    """Their squares overflow, they do not."""
    model = Model()
    model.kept = nn.Parameter(torch.full((70,), torch.finfo(dtype).max, dtype=dtype))
    step(tmp_path, model)
    model.kept.data[69] = torch.inf
    with pytest.raises(DivergedError, match="first kept"):
        step(tmp_path, model)


def test_weights_that_another_process_holds(tmp_path: Path) -> None:
    """ZeRO-3 leaves empty tensors, with this rank's part beside them."""
    model = Model()
    model.kept = nn.Parameter(torch.empty(0))
    step(tmp_path, model)
    model.kept.ds_tensor = torch.full((2,), torch.nan)
    with pytest.raises(
        DivergedError, match="1 of 1 trained weights are not finite, the first kept"
    ):
        step(tmp_path, model)


def test_losses_are_logged_as_they_are(tmp_path: Path) -> None:
    assert RAOConfig(output_dir=str(tmp_path), use_cpu=True).logging_nan_inf_filter is False


def losses(*values: float, name: str = "loss") -> list[dict[str, float]]:
    return [{name: value} for value in values]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (losses(*[1.0] * 5, *[2.5] * 5), "from 1 to 2.5"),
        (losses(*[1.0] * 5, *[2.5] * 4), None),
        (losses(*[1.0] * 5, *[1.9] * 5), None),
        # A spread as large as the rise is noise.
        (losses(1.0, 1.0, 1.0, 1.0, 3.0, *[2.9] * 5), None),
        (losses(*[5.0] * 5, *[1.0] * 20), None),
        (losses(*[0.0] * 5, *[1.0] * 5), None),
        (losses(*[-1.0] * 5, *[-3.0] * 5), None),
        ([{"eval_loss": 3.0}, *losses(*[1.0] * 5, *[2.5] * 5)], None),
        (losses(0.35, 1.98, name="eval_loss"), "eval_loss has risen from 0.35 to 1.98"),
        (losses(0.35, 0.5, name="eval_loss"), None),
        ([{"eval_a_loss": 1.0}, {"eval_b_loss": 3.0}, {"eval_a_loss": 2.0}], "eval_a_loss"),
    ],
)
def test_rise(history: list[dict[str, float]], expected: str | None) -> None:
    found = rise(history)
    assert (found is None) == (expected is None)
    assert expected is None or expected in str(found)


def rising(run: RAOTrainer) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train()
    return [str(one.message) for one in caught if "has risen" in str(one.message)]


@pytest.mark.parametrize(("rate", "rises"), [(3.0, True), (0.01, False)])
def test_a_rising_loss_is_warned_of_once(tmp_path: Path, rate: float, rises: bool) -> None:
    run = trainer(
        tmp_path,
        tiny_rows(8),
        learning_rate=rate,
        num_train_epochs=6,
        max_grad_norm=1.0,
        eval_dataset=tiny_rows(12)[8:],
        eval_strategy="epoch",
        eval_on_start=True,
    )
    said = rising(run)
    assert len(said) == int(rises)
    assert not said or "learning_rate (now 3)" in said[0]


@pytest.mark.parametrize("loss", ["rao", "sft"])
def test_held_out_rows_without_an_order(tmp_path: Path, loss: str) -> None:
    """Only where the metrics are of rewards; one row with an order is enough."""
    ties = [{"prompt": "ask", "responses": ["a", "b"], "rewards": [1.0, 1.0]}] * 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, loss=loss, eval_dataset=ties)
        trainer(tmp_path, loss=loss, eval_dataset=[*ties, *tiny_rows(3)])
    said = [one for one in caught if "rewards/margins stays 0" in str(one.message)]
    assert len(said) == int(loss == "rao")
