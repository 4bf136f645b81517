"""The trainer's tolerance "auto" against its rule, on real rows (docs/sparse.md)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rao_kernels import EngineOptions, backends
from rao_kernels.ops import linear_logprobs
from rao_kernels.train.config import HIDDEN_BY_ROUNDING

from ..oracle import Problem, dense


def problem(shared: Path, dtype: torch.dtype) -> Problem:
    """Every twelfth response row."""
    safetensors = pytest.importorskip("safetensors.torch")
    data = safetensors.load_file(shared / "data" / "probe_train.safetensors")
    head = safetensors.load_file(shared / "models" / "smollm2-135m-instruct" / "embed.safetensors")
    codes, scales = (head[f"model.embed_tokens.weight.{part}"] for part in ("q8", "d"))
    weight = (codes.view(*scales.shape, -1) * scales.float()[..., None]).reshape(codes.shape)
    rows = (data["labels"] != -100).nonzero().squeeze(1)[::12]
    return Problem(
        data["hidden"][rows].to(dtype),
        weight.to(dtype),
        data["labels"][rows],
        dlogp=torch.randn(len(rows)),
    )


def gradients(one: Problem, tolerance: float, backend: str) -> tuple[Tensor, Tensor]:
    leaves = [leaf.clone().requires_grad_() for leaf in (one.hidden, one.weight)]
    options = EngineOptions(grad_tolerance=tolerance, backend=backend)
    logps = linear_logprobs(*leaves, one.targets, **options)
    dhidden, dweight = torch.autograd.grad((logps * one.dlogp).sum(), leaves)
    return dhidden, dweight


@pytest.mark.parametrize("dtype", HIDDEN_BY_ROUNDING)
def test_auto_is_the_largest_that_rounding_hides(shared_dir: Path, dtype: torch.dtype) -> None:
    """Dropping and rounding together are at most sqrt(2) of what rounding is where products are
    made in `dtype`; at twice the tolerance they are more than sqrt(2) of the backend's own,
    which is a third less on a processor that widens the operands."""
    if reason := backends.reasons(torch.device("cpu"), dtype)["cpu"]:
        pytest.skip(f"backend 'cpu': {reason}")
    auto = HIDDEN_BY_ROUNDING[dtype]
    runs = [(0.0, "eager"), (auto, "cpu"), (0.0, "cpu"), (2 * auto, "cpu")]
    squares = torch.zeros(len(runs), 2, dtype=torch.float64)  # of dhidden and of dweight
    one = problem(shared_dir, dtype)
    for _ in range(2):
        one = replace(one, dlogp=torch.randn(len(one.targets)))
        truth = dense(one.to(torch.float64))
        for row, run in zip(squares, runs, strict=True):
            got = gradients(one, *run)
            for place, want in enumerate((truth.dhidden, truth.dweight)):
                row[place] += (got[place].double() - want).square().sum()
    rounding, at_auto, own, beyond = squares.sqrt()
    assert (at_auto <= math.sqrt(2) * rounding).all()
    assert (beyond > math.sqrt(2) * own).any()
