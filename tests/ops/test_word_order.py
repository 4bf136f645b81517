"""A word order learnt over calls: what it learns from, that it pays, and that it changes nothing
else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rao_kernels import WordOrder
from rao_kernels.engine import record_work
from rao_kernels.errors import InputError
from rao_kernels.ops import linear_logprobs

from ..cases import make
from ..oracle import Problem

DELTA = 2.0**-9


def run(problem: Problem, order: WordOrder | Tensor | None, **options: object) -> Tensor:
    hidden = problem.hidden.clone().requires_grad_()
    keywords = {**problem.keywords(), "grad_tolerance": DELTA, "word_order": order, **options}
    logps = linear_logprobs(hidden, problem.weight, problem.targets, **keywords)
    return torch.autograd.grad(logps.sum(), hidden)[0]


def affinity(problem: Problem, rows: list[int]) -> Tensor:
    """Mean root of the probability, from plain logits."""
    z = problem.hidden[rows] @ problem.weight.T
    if problem.bias is not None:
        z = z + problem.bias
    if problem.logit_softcap is not None:
        z = problem.logit_softcap * torch.tanh(z / problem.logit_softcap)
    return torch.softmax(z * problem.logit_scale, 1).sqrt().mean(0)


def test_it_averages_the_sampled_rows_over_calls() -> None:
    """One row in 32; with ignored ones, at even ranks of those that are left."""
    shape = {"rows": 128, "vocabulary": 300, "size": 8, "bias": True, "softcap": 5.0, "scale": 0.7}
    first, second = (make(dtype=torch.float64, seed=seed, **shape) for seed in (0, 1))
    targets = second.targets.clone()
    targets[:64] = -100
    second = replace(second, targets=targets)
    order = WordOrder()
    run(first, order, ignore_index=None)
    own = affinity(first, [0, 32, 64, 96])
    torch.testing.assert_close(order.affinity, own.float())
    run(second, order)
    own = torch.lerp(own, affinity(second, [64, 80, 96, 112]), 0.1)
    torch.testing.assert_close(order.affinity, own.float())


def test_the_past_counts_as_one_more_row() -> None:
    past, own = torch.tensor([3.9, 0.0, 3.0, 0.0]), torch.tensor([0.0, 0.5, 0.0, 1.0])
    order = WordOrder(past)
    torch.testing.assert_close(order.observe(own, 4), 0.8 * own + 0.2 * past)
    torch.testing.assert_close(order.affinity, 0.9 * past + 0.1 * own)
    first = WordOrder()
    assert torch.equal(first.observe(own, 4), own)
    assert torch.equal(first.affinity, own)


def test_nothing_is_learnt_where_nothing_is_dropped() -> None:
    problem, order = make(rows=40, vocabulary=300, size=8), WordOrder()
    with torch.no_grad():
        linear_logprobs(
            problem.hidden,
            problem.weight,
            problem.targets,
            grad_tolerance=DELTA,
            word_order=order,
        )
    run(problem, order, grad_tolerance=0.0)
    run(make(rows=0, vocabulary=300, size=8), order)
    assert order.affinity is None


def test_gradients_are_those_of_any_order() -> None:
    problem, order = make(rows=70, vocabulary=3000, size=16, dtype=torch.float64), WordOrder()
    tiny = {"grad_tolerance": 1e-300}
    expected = run(problem, None, **tiny)
    for _ in range(2):
        torch.testing.assert_close(run(problem, order, **tiny), expected, rtol=1e-10, atol=1e-12)


def test_rows_that_are_not_finite_do_not_poison_it() -> None:
    problem, order = make(rows=40, vocabulary=300, size=8), WordOrder()
    problem.hidden[::2] = torch.nan
    run(problem, order, ignore_index=None)
    assert order.affinity is not None and order.affinity.isfinite().all()


def test_another_vocabulary_is_named() -> None:
    for affinity in (torch.ones(7), torch.ones(300, dtype=torch.float64)):
        with pytest.raises(InputError, match="learnt on 300 words"):
            run(make(rows=40, vocabulary=300, size=8), WordOrder(affinity))


def test_compiles() -> None:
    problem = make(rows=40, vocabulary=300, size=8)
    order, again = WordOrder(), WordOrder()
    options = {"grad_tolerance": DELTA, **problem.keywords()}

    def forward(hidden: Tensor, order: WordOrder) -> Tensor:
        return linear_logprobs(
            hidden, problem.weight, problem.targets, word_order=order, **options
        ).sum()

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    for _ in range(2):  # the second call has something to go on from
        hidden = problem.hidden.clone().requires_grad_()
        got, expected = (
            torch.autograd.grad(function(hidden, one), hidden)[0]
            for function, one in ((compiled, order), (forward, again))
        )
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(order.affinity, again.affinity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_batches_of_real_rows_keep_fewer_pairs(shared_dir: Path, dtype: torch.dtype) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    data = safetensors.load_file(shared_dir / "data" / "probe_train.safetensors")
    head = safetensors.load_file(
        shared_dir / "models" / "smollm2-135m-instruct" / "embed.safetensors"
    )
    codes, scales = (head[f"model.embed_tokens.weight.{part}"] for part in ("q8", "d"))
    weight = (codes.view(*scales.shape, -1) * scales.float()[..., None]).reshape(codes.shape)
    keep = data["labels"] != -100
    hidden, targets = data["hidden"][keep].to(dtype), data["labels"][keep]
    weight = weight.to(dtype)
    kept = []
    for order in (None, WordOrder()):
        with record_work() as work:
            for rows in torch.arange(1024).split(64):
                run(Problem(hidden[rows], weight, targets[rows]), order)
        kept.append(work.row_tiles_kept)
    assert kept[1] < 0.98 * kept[0]
