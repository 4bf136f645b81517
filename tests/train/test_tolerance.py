"""The trainer's tolerance "auto" against its rule, on real rows (docs/sparse.md)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rao_kernels import backends
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


def gradients(one: Problem, tolerance: float) -> tuple[Tensor, Tensor]:
    leaves = [leaf.clone().requires_grad_() for leaf in (one.hidden, one.weight)]
    logps = linear_logprobs(*leaves, one.targets, grad_tolerance=tolerance)
    dhidden, dweight = torch.autograd.grad((logps * one.dlogp).sum(), leaves)
    return dhidden, dweight


@pytest.mark.parametrize("dtype", HIDDEN_BY_ROUNDING)
def test_auto_is_the_largest_that_rounding_hides(shared_dir: Path, dtype: torch.dtype) -> None:
    """Dropping and rounding together are at most sqrt(2) of rounding alone; at twice the tolerance
    they are more."""
    if reason := backends.reasons(torch.device("cpu"), dtype)["cpu"]:
        pytest.skip(f"backend 'cpu': {reason}")
    one = problem(shared_dir, dtype)
    truth = dense(one.to(torch.float64))
    auto = HIDDEN_BY_ROUNDING[dtype]
    rounding, at_auto, beyond = (
        [
            float((got.double() - want).norm())
            for got, want in zip(
                gradients(one, tolerance), (truth.dhidden, truth.dweight), strict=True
            )
        ]
        for tolerance in (0.0, auto, 2 * auto)
    )
    hidden = [
        all(own <= math.sqrt(2) * alone for own, alone in zip(errors, rounding, strict=True))
        for errors in (at_auto, beyond)
    ]
    assert hidden == [True, False]
