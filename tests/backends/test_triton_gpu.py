"""The Triton backend on a GPU: the contract, streams, graphs and large problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import product

import pytest
import torch
from torch import Tensor

from rao_kernels import backends
from rao_kernels.backends.triton import tuning
from rao_kernels.ops import linear_logprobs

from ..cases import PROBLEMS, error, make
from ..oracle import Answer, Problem
from .conftest import FORMS
from .test_contract import WORKSPACES, assert_as_good_as_torch, case, run

WHY = "there is no GPU"
if torch.cuda.is_available():
    WHY = backends.reasons(torch.device("cuda"), torch.bfloat16)["triton"] or ""
pytestmark = pytest.mark.skipif(bool(WHY), reason=f"backend 'triton': {WHY}")
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each form of the tile operations, forced."""
    monkeypatch.setattr(tuning, "is_fused", lambda *_: request.param == "fused")
    return str(request.param)


SELECTED = [*product(FORMS, HALVES), ("unfused", torch.float32)]


@pytest.mark.usefixtures("nan_filled_memory", "form")
@pytest.mark.parametrize("workspace", WORKSPACES)
@pytest.mark.parametrize(("form", "dtype"), SELECTED, indirect=["form"], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_contract(name: str, dtype: torch.dtype, workspace: str) -> None:
    assert_as_good_as_torch(
        lambda problem: run(problem, "triton", WORKSPACES[workspace], "cuda"),
        lambda seed: case(name, dtype, seed),
    )


# Several tiles; rows and entries that are no multiples of a block; D that is one or is not.
LARGE = {
    "even": {"rows": 1000, "vocabulary": 20_011, "size": 1024},
    "uneven": {"rows": 515, "vocabulary": 16_640, "size": 1040, "entropy": True},
    "unaligned": {"rows": 130, "vocabulary": 9_001, "size": 1027},
}


@pytest.mark.usefixtures("nan_filled_memory", "form", "narrow_tiles")
@pytest.mark.parametrize("workspace", WORKSPACES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_large_problems(name: str, dtype: torch.dtype, workspace: str) -> None:
    problem = make(dtype=dtype, **LARGE[name])
    truth = run(problem.to(torch.float64), "eager", 0, "cuda")
    plain = run(problem, "eager", 0, "cuda")
    got = run(problem, "triton", WORKSPACES[workspace], "cuda")
    for field in fields(Answer):
        mine, true, eagers = (getattr(one, field.name) for one in (got, truth, plain))
        if true is not None and mine.is_floating_point():
            assert error(mine, true) <= 2 * error(eagers, true) + 2e-5, field.name


@pytest.mark.usefixtures("form")
def test_sparse_walk_drops_no_more_than_it_may() -> None:
    problem = make(300, 30_000, 512, dtype=torch.bfloat16, logit_std=6.0)
    dense, sparse = (_gradients(problem, grad_tolerance=delta) for delta in (0.0, 2.0**-9))
    for exact, kept in zip(dense, sparse, strict=True):
        assert error(kept.double(), exact.double()) < 2e-2
    weight = problem.weight.cuda()
    largest = weight.float().norm(dim=1).max()
    assert problem.dlogp is not None
    moved = (dense[0].float() - sparse[0].float()).norm(dim=1)
    bound = problem.dlogp.cuda().abs().float() * 2.0**-9 * largest
    rounding = 2 * 2.0**-8 * dense[0].float().norm(dim=1)
    assert (moved <= bound + rounding).all()


def _gradients(problem: Problem, **options: object) -> tuple[Tensor, ...]:
    hidden, weight = (x.cuda().requires_grad_() for x in (problem.hidden, problem.weight))
    logps = linear_logprobs(hidden, weight, problem.targets.cuda(), backend="triton", **options)
    assert problem.dlogp is not None
    return torch.autograd.grad(logps, (hidden, weight), problem.dlogp.cuda().to(logps.dtype))


def _trusted() -> tuple[Callable[[], tuple[Tensor, ...]], Tensor]:
    """Return a step that reads nothing on the host, over fixed tensors, and its hidden."""
    problem = make(256, 17_000, 512, dtype=torch.bfloat16)
    hidden, weight = (x.cuda().requires_grad_() for x in (problem.hidden, problem.weight))
    targets = problem.targets.cuda()

    def step() -> tuple[Tensor, ...]:
        logps = linear_logprobs(hidden, weight, targets, ignore_index=None, backend="triton")
        return logps.detach(), *torch.autograd.grad(logps.sum(), (hidden, weight))

    return step, hidden


@contextmanager
def sync_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("form")
def test_trusted_rows_never_wait_for_the_gpu() -> None:
    step, _ = _trusted()
    step()
    with sync_is_an_error():
        step()


@pytest.mark.usefixtures("form")
def test_graph_capture() -> None:
    step, hidden = _trusted()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        hidden.mul_(0.5)
    graph.replay()
    for replayed, expected in zip(captured, step(), strict=True):
        assert torch.equal(replayed, expected)


@pytest.mark.usefixtures("form")
def test_compiled_whole() -> None:
    problem = make(200, 17_000, 512, dtype=torch.bfloat16)
    hidden, weight = (x.cuda().requires_grad_() for x in (problem.hidden, problem.weight))
    targets = problem.targets.cuda()

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_logprobs(hidden, weight, targets, backend="triton").square().mean()

    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        loss = function(hidden, weight)
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    for plain, compiled in zip(*results, strict=True):
        assert error(compiled.double(), plain.double()) < 1e-2


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("delta", [0.0, 2.0**-9])
def test_same_bits_in_deterministic_mode(delta: float, nan_filled_memory: None) -> None:
    problem = make(300, 17_000, 512, dtype=torch.bfloat16, ignored=0.2)
    first, second = (_gradients(problem, grad_tolerance=delta) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("form")
def test_another_stream() -> None:
    step, _ = _trusted()
    expected = step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        got = step()
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.usefixtures("form")
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_a_device_that_is_not_the_current_one() -> None:
    problem = make(100, 17_000, 512, dtype=torch.bfloat16)
    first, second = (run(problem, "triton", None, f"cuda:{index}") for index in (0, 1))
    for field in fields(Answer):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert a is b is None or torch.equal(a, b)


@pytest.mark.usefixtures("form", "narrow_tiles")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    problem = make(100, 17_000, 512)
    with torch.autocast("cuda", dtype=dtype):
        hidden, weight = (x.cuda().requires_grad_() for x in (problem.hidden, problem.weight))
        logps = linear_logprobs(hidden, weight, problem.targets.cuda(), backend="triton")
    dhidden, dweight = torch.autograd.grad(logps.sum(), (hidden, weight))
    assert dhidden.dtype == dweight.dtype == torch.float32
    narrow = problem.to(dtype)
    got = linear_logprobs(
        narrow.hidden.cuda(), narrow.weight.cuda(), narrow.targets.cuda(), backend="triton"
    )
    assert torch.equal(logps.detach(), got)


def test_more_than_2_to_the_31_logits() -> None:
    """Offsets need int64: a retained tile and a scratch tile have more than 2^31 elements."""
    rows = 2**31 // 8192 + 300
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    hidden = torch.randn(rows, 16, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(8192, 16, device="cuda", dtype=torch.bfloat16)
    targets = torch.randint(0, 8192, (rows,), device="cuda")
    hidden.requires_grad_()
    logps = linear_logprobs(hidden, weight, targets, workspace_bytes=1 << 34, backend="triton")
    (dhidden,) = torch.autograd.grad(logps.sum(), (hidden,))
    last = slice(rows - 100, rows)
    again = hidden.detach()[last].requires_grad_()
    few = linear_logprobs(again, weight, targets[last], backend="eager")
    (expected,) = torch.autograd.grad(few.sum(), (again,))
    assert error(logps[last].double(), few.double()) < 1e-5
    assert error(dhidden[last].double(), expected.double()) < 2e-2


def test_the_table_names_this_gpu_or_the_vendor_serves_it() -> None:
    device = torch.device("cuda")
    known = [row for row in tuning.forms() if row["device"] in torch.cuda.get_device_name()]
    fused = tuning.is_fused("score", device, torch.bfloat16, 64)
    assert fused == any(row["score"] >= 64 and row["dtype"] == "bfloat16" for row in known)
