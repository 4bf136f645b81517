"""The answers providers are held to, against autograd over dense logits in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rao_kernels.bench.cases import LOSSES, OP
from rao_kernels.bench.problems import HYPER, SEQUENCES, Problem, real_loss_problem
from rao_kernels.losses import LOSSES as TABLE

from .tiny import tiny_problem


def dense_logps(hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1)


def dense_value(problem: Problem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The value, and the scalar whose gradients are asked for."""
    logps = dense_logps(hidden, weight, problem.softcap)
    if problem.task == OP:
        value = logps.gather(1, problem.targets[:, None]).squeeze(1)
        return value, (value * problem.upstream).sum()
    following = problem.input_ids.roll(-1, dims=1)
    scored = logps.gather(-1, following[..., None]).squeeze(-1)
    given = problem.batch.loss_inputs(scored, **problem.loss_inputs)
    value = TABLE[problem.task](given, **HYPER[problem.task]).loss
    return value, value


@pytest.mark.parametrize(
    ("task", "softcap", "prompt"),
    [(OP, None, False), (OP, 1.5, False), *((t, None, p) for t in LOSSES for p in (False, True))],
)
def test_truth(task: str, softcap: float | None, prompt: bool) -> None:
    problem = tiny_problem(task, softcap=softcap, prompt=prompt)
    hidden, weight = (t.double().requires_grad_() for t in (problem.hidden, problem.weight))
    value, scalar = dense_value(problem, hidden, weight)
    dhidden, dweight = torch.autograd.grad(scalar, (hidden, weight))
    torch.testing.assert_close(problem.truth.value, value.detach())
    torch.testing.assert_close(problem.truth.dhidden, dhidden.float(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(problem.truth.dweight, dweight.float(), rtol=1e-5, atol=1e-8)
    assert problem.truth.dhidden.norm() > 0


@pytest.mark.parametrize("task", LOSSES)
def test_truth_of_given_rows(task: str) -> None:
    """Every given row is scored against its own target, in order."""
    length, weight = 6, torch.randn(40, 8)
    hidden, targets = torch.randn(50, 8), torch.randint(40, (50,))
    problem = real_loss_problem(task, hidden, weight, targets, length)
    batch, used = problem.batch, SEQUENCES * length
    assert torch.equal(problem.hidden.flatten(0, 1)[batch.response_rows], hidden[:used])
    assert torch.equal(batch.response_targets, targets[:used])
    leaves = [t.double().requires_grad_() for t in (problem.hidden, problem.weight)]
    value, scalar = dense_value(problem, *leaves)
    dhidden, dweight = torch.autograd.grad(scalar, leaves)
    torch.testing.assert_close(problem.truth.value, value.detach())
    torch.testing.assert_close(problem.truth.dhidden, dhidden.float(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(problem.truth.dweight, dweight.float(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("task", LOSSES)
def test_gradients_are_not_saturated(task: str) -> None:
    """A sigmoid at its end would make the backward of a loss free for those who skip rows."""
    problem = tiny_problem(task)
    batch, dhidden = problem.batch, problem.truth.dhidden.flatten(0, 1)
    norms = dhidden[batch.response_rows].norm(dim=1)
    assert norms.min() > 1e-4 * norms.max()


def test_prompt_rows_are_scored_only_where_there_is_a_prompt() -> None:
    assert len(tiny_problem("rao").batch.prompt_rows) == 0
    prompts = tiny_problem("rao", prompt=True).batch.prompt_rows
    assert len(prompts) == 4 * (40 // 8 - 1)  # once for each of four groups, after the first token


def test_saved_and_loaded(tmp_path: Path) -> None:
    problem = tiny_problem("rao", dtype="bf16", prompt=True)
    problem.save(tmp_path / "problem.pt")
    loaded = Problem.load(tmp_path / "problem.pt", torch.device("cpu"))
    assert torch.equal(loaded.hidden, problem.hidden) and loaded.task == "rao"
    assert torch.equal(loaded.truth.dweight, problem.truth.dweight)
    assert loaded.loss_inputs.keys() == problem.loss_inputs.keys()
