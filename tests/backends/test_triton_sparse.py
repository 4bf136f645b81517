"""The sparse backward with Triton's tile operations: permuted entries, gathered rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rao_kernels.backends.triton import tuning
from rao_kernels.engine import Work, record_work
from rao_kernels.ops import linear_logprobs_and_entropy

from ..cases import error, make
from ..oracle import Problem
from .conftest import FORMS
from .test_contract import require


def gradients(problem: Problem, backend: str, workspace_bytes: int | None) -> list[Tensor]:
    leaves = [problem.hidden, problem.weight, problem.bias]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves if leaf is not None]
    hidden, weight, *bias = leaves
    logps, entropy = linear_logprobs_and_entropy(
        hidden,
        weight,
        problem.targets,
        bias=bias[0] if bias else None,
        grad_tolerance=2.0**-7,
        workspace_bytes=workspace_bytes,
        backend=backend,
    )
    assert problem.dlogp is not None
    assert problem.dentropy is not None
    total = (problem.dlogp * logps).sum() + (problem.dentropy * entropy).sum()
    return [logps.detach(), entropy.detach(), *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("workspace_bytes", [0, None], ids=["recomputed", "retained"])
@pytest.mark.parametrize("form", [f"{form}-interpret" for form in FORMS])
def test_same_as_eager(
    form: str, workspace_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("triton", torch.float32)
    monkeypatch.setattr(tuning, "is_fused", lambda *_: form.startswith("fused"))
    problem = make(24, 3300, 24, logit_std=9.0, bias=True, ignored=0.2, entropy=True)
    problem = replace(problem, dentropy=problem.dlogp)
    works: list[Work] = []
    answers = []
    for backend in ("eager", "triton"):
        with record_work() as work:
            answers.append(gradients(problem, backend, workspace_bytes))
        works.append(work)
    assert works[0] == works[1]
    assert works[1].row_tiles_kept < works[1].row_tiles
    for eager, triton in zip(*answers, strict=True):
        assert error(triton, eager.double()) < 1e-5
