"""Fused Triton kernels as Hopper and Blackwell run them: blocks are loaded by descriptor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rao_kernels.backends.triton import tuning
from rao_kernels.ops import linear_logprobs

from ..cases import error, make
from ..oracle import Problem, dense
from .test_contract import Case, assert_as_good_as_torch, require, run

TARGETS = {
    "H200": tuning.Target("H200", (9, 0), 3, 232448, False),
    "B200": tuning.Target("B200", (10, 0), 3, 232448, False),
}
# Of plain log-probs: rows of a block in forward, and parts of a block in backward.
FORWARD_ROWS, BACKWARD_PARTS = {"H200": 128, "B200": 64}, {"H200": 4, "B200": 8}
PROBLEMS: dict[str, dict[str, object]] = {
    "even": {"rows": 140, "vocabulary": 1024, "size": 64},
    "ragged": {"rows": 70, "vocabulary": 1500, "size": 80, "entropy": True, "lse": True},
    "transformed": {"rows": 40, "vocabulary": 900, "size": 32, "bias": True, "softcap": 5.0},
}


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shape of each block that kernels load by descriptor."""
    require("triton", torch.float32)
    from rao_kernels.backends.triton import score_tile_kernels as kernels

    described: list[tuple[int, int]] = []
    descriptor = kernels.descriptor

    def recorded(matrix: Tensor, rows: int, columns: int) -> object:
        described.append((rows, columns))
        return descriptor(matrix, rows, columns)

    monkeypatch.setattr(kernels, "descriptor", recorded)
    monkeypatch.setattr(tuning, "is_fused", lambda *_: True)
    return described


@pytest.mark.parametrize("workspace", [None, 0], ids=["retained", "recomputed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("target", TARGETS)
def test_values_and_gradients(
    target: str,
    name: str,
    dtype: torch.dtype,
    workspace: int | None,
    blocks: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "target_of", lambda device: TARGETS[target])

    def case_of(seed: int) -> Case:
        problem = make(dtype=dtype, seed=seed, **PROBLEMS[name])
        return problem, dense(problem.to(torch.float64)), dense(problem)

    def answer(problem: Problem):  # type: ignore[no-untyped-def]
        return run(problem, "triton", workspace)

    assert_as_good_as_torch(answer, case_of)
    forward, backward, entries = ((height, 128 // dtype.itemsize) for height in (64, 128, 256))
    # With a bias or softcap the scoring kernel reads the vendor's products.
    fused_forward, fused_backward = name != "transformed", workspace == 0
    assert set(blocks) <= {forward, backward, entries}
    assert (forward in blocks) == fused_forward
    assert (backward in blocks) >= fused_backward
    assert (entries in blocks) == (fused_forward or fused_backward)


@pytest.mark.parametrize("target", TARGETS)
def test_plain_log_probs(
    target: str, blocks: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "target_of", lambda device: TARGETS[target])
    problem = make(140, 1500, 64)
    arguments = (problem.hidden, problem.weight, problem.targets)
    eager, triton = (linear_logprobs(*arguments, backend=name) for name in ("eager", "triton"))
    assert error(triton, eager.double()) < 1e-5
    assert set(blocks) == {(FORWARD_ROWS[target], 32), (256, 32)}


@pytest.mark.parametrize("target", TARGETS)
def test_parts_of_a_plain_backward(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rao_kernels.backends import Head

    monkeypatch.setattr(tuning, "target_of", lambda device: TARGETS[target])
    hidden = torch.empty(4, 64, dtype=torch.bfloat16)
    head = Head(hidden, hidden, None, torch.zeros(4, dtype=torch.int64), 1.0, None)
    assert tuning.grad_launch(head).parts == BACKWARD_PARTS[target]
