"""The CUDA and the eager backend on a GPU: the contract, streams, graphs and devices."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from rao_kernels import backends
from rao_kernels.ops import linear_logprobs, linear_logprobs_and_entropy

from ..cases import PROBLEMS, allowed, error, make
from ..oracle import Answer, Problem, dense
from .test_contract import DTYPES, WORKSPACES, Case, assert_as_good_as_torch, run, worse_than_torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

BACKENDS = ("cuda", "eager")
HALF = torch.bfloat16


def moved(values: Problem | Answer, device: str) -> Problem | Answer:
    tensors = {field.name: getattr(values, field.name) for field in fields(values)}
    return replace(values, **{k: v.to(device) for k, v in tensors.items() if isinstance(v, Tensor)})


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def require(backend: str, dtype: torch.dtype, device: str = "cuda") -> None:
    if reason := backends.reasons(torch.device(device), dtype)[backend]:
        pytest.skip(f"backend {backend!r}: {reason}")


@cache
def case(name: str, dtype: torch.dtype, seed: int) -> Case:
    """Return a problem, its answer in float64, and plain torch's in `dtype` on the GPU."""
    problem = make(dtype=dtype, seed=seed, **PROBLEMS[name])
    plain = moved(dense(moved(problem, "cuda")), "cpu")
    return problem, dense(problem.to(torch.float64)), plain


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("workspace", WORKSPACES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_values_and_gradients(backend: str, name: str, dtype: torch.dtype, workspace: str) -> None:
    require(backend, dtype)
    assert_as_good_as_torch(
        lambda problem: run(problem, backend, WORKSPACES[workspace], "cuda"),
        lambda seed: case(name, dtype, seed),
    )


@pytest.mark.usefixtures("narrow_tiles")
def test_several_tiles_and_a_ragged_last_one(backend: str) -> None:
    require(backend, HALF)
    problem = make(300, 50257, 64, dtype=HALF, entropy=True, lse=True, ignored=0.3)
    truth = dense(problem.to(torch.float64))
    plain = moved(dense(moved(problem, "cuda")), "cpu")
    for workspace in (None, 0, 20 << 20):
        assert worse_than_torch(run(problem, backend, workspace, "cuda"), truth, plain, HALF) == []


@pytest.mark.usefixtures("nan_filled_memory")
def test_same_bits_every_time(backend: str) -> None:
    """With torch's deterministic algorithms."""
    require(backend, HALF)
    problem = make(517, 20000, 128, dtype=HALF, entropy=True, ignored=0.2)
    first, second = (run(problem, backend, None, device="cuda") for _ in range(2))
    for field in fields(Answer):
        mine, again = getattr(first, field.name), getattr(second, field.name)
        assert mine is again is None or torch.equal(mine, again), field.name


class Call:
    """A forward and a backward over fixed tensors, as a captured graph needs."""

    def __init__(self, backend: str, rows: int = 256, device: str = "cuda") -> None:
        problem = moved(make(rows, 20000, 128, dtype=HALF), device)
        assert isinstance(problem, Problem)
        self.hidden = problem.hidden.requires_grad_()
        self.weight = problem.weight.requires_grad_()
        self.targets, self.backend = problem.targets, backend

    def __call__(self, ignore_index: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        logps = linear_logprobs(
            self.hidden,
            self.weight,
            self.targets,
            ignore_index=ignore_index,
            backend=self.backend,
        )
        return logps.detach(), *torch.autograd.grad(logps.sum(), (self.hidden, self.weight))


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


@contextmanager
def sync_debug_mode(mode: str) -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_synchronisation_with_trusted_targets(backend: str) -> None:
    require(backend, HALF)
    call = Call(backend)
    call()
    with sync_debug_mode("error"):
        call()


def test_one_read_per_direction_with_ignored_targets(backend: str) -> None:
    require(backend, HALF)
    call = Call(backend)
    call(-100)
    with sync_debug_mode("warn"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(-100)
    assert len([w for w in caught if "synchroniz" in str(w.message)]) == 2


def test_a_captured_graph_replays_with_new_inputs(backend: str) -> None:
    require(backend, HALF)
    call = Call(backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    with torch.no_grad():
        call.hidden.copy_(torch.randn_like(call.hidden))
        call.targets.random_(0, 20000)
    graph.replay()
    assert_same(captured, call())


def test_the_current_stream_is_used(backend: str) -> None:
    """The inputs change on a side stream, after work that keeps it busy."""
    require(backend, HALF)
    call = Call(backend)
    new = torch.randn_like(call.hidden)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        with torch.no_grad():
            call.hidden.copy_(new)
        late = call()
    torch.cuda.synchronize()
    assert_same(late, call())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_a_device_that_is_not_the_current_one(backend: str) -> None:
    require(backend, HALF, "cuda:1")
    assert torch.cuda.current_device() == 0
    there, here = Call(backend, device="cuda:1")(), Call(backend, device="cuda:0")()
    assert all(tensor.device.index == 1 for tensor in there)
    assert torch.cuda.current_device() == 0
    assert_same(tuple(tensor.to("cuda:0") for tensor in there), here)


def test_compiles_without_a_graph_break(backend: str) -> None:
    require(backend, HALF)
    call = Call(backend)

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logps, entropy = linear_logprobs_and_entropy(hidden, weight, targets, backend=backend)
        return (logps * logps + 0.1 * entropy).sum()

    def gradients(of: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        total = of(call.hidden, call.weight, call.targets)
        return torch.autograd.grad(total, (call.hidden, call.weight))

    assert_same(gradients(torch.compile(loss, fullgraph=True)), gradients(loss))


@pytest.mark.usefixtures("narrow_tiles")
def test_under_autocast(backend: str) -> None:
    """Products in bfloat16, gradients in each tensor's own dtype.

    With tiles as wide as those of bfloat16 weights, which would otherwise be widened.
    """
    require(backend, HALF)
    call = Call(backend)
    hidden, weight = (t.detach().float().requires_grad_() for t in (call.hidden, call.weight))
    with torch.autocast("cuda", dtype=HALF):
        logps = linear_logprobs(hidden, weight, call.targets, ignore_index=None, backend=backend)
    dhidden, dweight = torch.autograd.grad(logps.sum(), (hidden, weight))
    expected = call()
    assert torch.equal(logps.detach(), expected[0])
    assert dhidden.dtype == dweight.dtype == torch.float32
    assert torch.equal(dhidden.to(HALF), expected[1])
    assert error(dweight.double(), expected[2].double()) <= 2.0**-7


def test_a_tile_of_more_than_2_to_the_31_elements(backend: str) -> None:
    require(backend, HALF)
    rows, vocabulary, size = 270_000, 8192, 16
    if torch.cuda.get_device_properties(0).total_memory < 48 << 30:
        pytest.skip("the GPU has less than 48 GiB")
    last = slice(rows - 64, rows)
    hidden = torch.randn(rows, size, device="cuda", dtype=HALF, requires_grad=True)
    weight = torch.randn(vocabulary, size, device="cuda", dtype=HALF, requires_grad=True)
    targets = torch.randint(0, vocabulary, (rows,), device="cuda")
    logps = linear_logprobs(
        hidden, weight, targets, ignore_index=None, workspace_bytes=8 << 30, backend=backend
    )
    upstream = torch.zeros(rows, device="cuda")
    upstream[last] = 1.0
    dhidden, dweight = torch.autograd.grad(logps, (hidden, weight), upstream)
    small = Problem(
        hidden.detach()[last], weight.detach(), targets[last], dlogp=upstream[last].double()
    )
    truth, plain = dense(small.to(torch.float64)), dense(small)
    got = {"logps": logps.detach()[last], "dhidden": dhidden[last], "dweight": dweight}
    for name, mine in got.items():
        true, torchs = getattr(truth, name), getattr(plain, name)
        assert error(mine, true) <= allowed(torchs, true, HALF), name
