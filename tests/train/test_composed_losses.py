"""Sums of losses, and losses that read more of the head than log-probs, through the trainer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rao_kernels.losses import LOSSES
from tests.train.test_trainer import PAIRS, Gradients, dense_inputs, one_batch, trainer
from tests.train.tiny import tiny_model

BOTH = json.dumps({"sigmoid": 0.8, "sft": 1.0})


def test_each_loss_of_a_sum_is_a_mean_over_its_own_units(tmp_path: Path) -> None:
    """Windows of four pairs, cut into micro-batches in two ways."""
    runs = []
    for size, windows in ((4, 1), (2, 2)):
        gradients = Gradients()
        run = trainer(
            tmp_path / f"{size}",
            PAIRS,
            loss=BOTH,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=windows,
            callbacks=[gradients],
        )
        run.train()
        losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        runs.append((losses, gradients.steps))
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-4)
    for step, expected in zip(runs[1][1], runs[0][1], strict=True):
        for name, gradient in expected.items():
            torch.testing.assert_close(step[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_weights_from_the_heads_own_statistics(tmp_path: Path) -> None:
    gradients = Gradients()
    run = trainer(
        tmp_path,
        PAIRS,
        loss="sigmoid",
        loss_kwargs={"wpo": True},
        per_device_train_batch_size=16,
        callbacks=[gradients],
    )
    policy = tiny_model()
    policy.load_state_dict(run.model.state_dict())
    batch = one_batch(run)
    inputs = dense_inputs(policy, batch, tiny_model())
    logits = policy(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    squares = (2 * logits.detach().double().log_softmax(-1)).logsumexp(-1)[:, :-1]
    inputs = replace(inputs, token_log_sum_sq=squares[batch["completion_mask"][:, 1:]])
    expected = LOSSES["sigmoid"](inputs, wpo=True)
    expected.loss.backward()
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(expected.loss.item(), rel=1e-4)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(
            gradients.steps[0][name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name
        )
