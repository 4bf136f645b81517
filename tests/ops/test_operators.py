"""The registered operators: schemas, fakes, host reads, CUDA graphs, and what they launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.utils import get_first_incompatible_cudagraph_node
from torch.fx import GraphModule
from torch.library import CustomOpDef
from torch.utils._python_dispatch import TorchDispatchMode

from rao_kernels.backends import eager
from rao_kernels.ops import linear_logprobs, linear_logprobs_and_entropy
from rao_kernels.ops.operators import (
    differentiate,
    linear_logprobs_backward_op,
    linear_logprobs_op,
    score,
    trusted_backward_op,
    trusted_op,
)
from rao_kernels.ops.signatures import Gradients, Results

from ..cases import make
from ..oracle import Problem
from .calls import backward_call, forward_call

CASES: dict[str, dict[str, object]] = {
    "plain": {"rows": 6, "vocabulary": 40, "size": 5},
    "everything": {"rows": 6, "vocabulary": 40, "size": 5, "bias": True, "softcap": 3.0},
}
IGNORED = {"plain": 0.0, "everything": 0.4}


def on_meta(problem: Problem) -> Problem:
    """The same problem without numbers: reading one on the host raises."""
    tensors = {
        field.name: value.to("meta")
        for field in fields(problem)
        if isinstance(value := getattr(problem, field.name), Tensor)
    }
    return replace(problem, **tensors)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("operators", "options"),
    [
        ((linear_logprobs_op, linear_logprobs_backward_op), {"grad_tolerance": 0.0}),
        ((linear_logprobs_op, linear_logprobs_backward_op), {"grad_tolerance": 0.01}),
        ((trusted_op, trusted_backward_op), {"ignore_index": None}),
    ],
)
def test_opcheck(
    operators: tuple[CustomOpDef, CustomOpDef],
    options: dict[str, object],
    dtype: torch.dtype,
    case: str,
) -> None:
    ignored = 0.0 if "ignore_index" in options else IGNORED[case]
    problem = make(dtype=dtype, ignored=ignored, **CASES[case])
    call = forward_call(problem, workspace_bytes=4096, **options)
    for tensor in (problem.hidden, problem.weight, problem.bias):
        if tensor is not None:
            tensor.requires_grad_()
    forward, backward = operators
    torch.library.opcheck(forward, tuple(call))
    with torch.no_grad():
        results = Results(*forward(*call))
        torch.library.opcheck(backward, tuple(backward_call(call, results)))


def test_operators_that_may_read_on_the_host_are_kept_out_of_cuda_graphs() -> None:
    for operator in (linear_logprobs_op, linear_logprobs_backward_op):
        assert torch.Tag.cudagraph_unsafe in operator._opoverload.tags
    for operator in (trusted_op, trusted_backward_op):
        assert torch.Tag.cudagraph_unsafe not in operator._opoverload.tags


@pytest.fixture
def meta_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no autocast on `meta`, which the bodies turn off."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.mark.usefixtures("meta_autocast")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("workspace_bytes", [0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_trusted_dense_call_reads_nothing_on_the_host(
    dtype: torch.dtype, workspace_bytes: int | None, case: str
) -> None:
    """`meta` tensors have no numbers to read: the bodies of the operators run to their end."""
    problem = make(dtype=dtype, **CASES[case])
    call = forward_call(on_meta(problem), ignore_index=None, workspace_bytes=workspace_bytes)
    results = score(*call)
    found = differentiate(*backward_call(call, results))
    assert results.logp.is_meta and results.logp.shape == (6,)
    assert found.dhidden.shape == (6, 5) and found.dweight.shape == (40, 5)


@pytest.mark.usefixtures("meta_autocast")
@pytest.mark.parametrize("options", [{}, {"ignore_index": None, "grad_tolerance": 0.01}])
def test_other_calls_do_read_on_the_host(options: dict[str, object]) -> None:
    """So the test above can fail, and the tag is needed."""
    meta = forward_call(on_meta(make(**CASES["plain"])), **options)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        differentiate(*backward_call(meta, score(*meta)))


def compiled_graphs(**options: object) -> list[GraphModule]:
    """The forward and the backward graph of a compiled call."""
    graphs: list[GraphModule] = []

    def note(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch.compiler.reset()
    problem = make(**CASES["plain"])
    backend = aot_autograd(fw_compiler=note, bw_compiler=note)
    compiled = torch.compile(linear_logprobs, fullgraph=True, backend=backend)
    hidden = problem.hidden.clone().requires_grad_()
    logps = compiled(hidden, problem.weight, problem.targets, backend="eager", **options)
    logps.backward(problem.dlogp.to(logps.dtype))
    return graphs


@pytest.mark.parametrize(
    ("options", "captured"),
    [
        ({}, False),
        ({"ignore_index": None}, True),
        ({"ignore_index": None, "grad_tolerance": 0.01}, False),
    ],
)
def test_inductor_captures_calls_without_host_reads(
    options: dict[str, object], captured: bool
) -> None:
    """By the rule with which Inductor chooses what a CUDA graph holds, in either mode of it."""
    graphs = compiled_graphs(**options)
    assert len(graphs) == 2
    for graph in graphs:
        assert (get_first_incompatible_cudagraph_node(graph) is None) == captured


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
@pytest.mark.parametrize("ignore_index", [-100, None])
def test_modes_of_the_compiler_give_the_same_gradients(ignore_index: int | None, mode: str) -> None:
    problem = make(9, 300, 16, bias=True, ignored=0.3 if ignore_index else 0.0)

    def function(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return linear_logprobs_and_entropy(
            hidden, weight, problem.targets, bias=problem.bias, ignore_index=ignore_index
        )

    torch.compiler.reset()
    answers = []
    for run in (function, torch.compile(function, fullgraph=True, mode=mode)):
        leaves = [problem.hidden.clone().requires_grad_(), problem.weight.clone().requires_grad_()]
        found = run(*leaves)
        upstream = [problem.dlogp.float(), 0.1 * problem.dlogp.float()]
        answers.append([*found, *torch.autograd.grad(found, leaves, upstream)])
    for plain, compiled in zip(*answers, strict=True):
        assert torch.equal(plain, compiled)


class Launches(TorchDispatchMode):
    """Notes the operations that would launch a kernel: no views, no allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        name = func.overloadpacket.__name__
        if not func.is_view and "empty" not in name:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def without_tile_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """`eager` computes nothing: what runs is the engine's and the operators' own."""
    monkeypatch.setattr(eager, "score_tile", lambda *_: None)
    monkeypatch.setattr(eager, "grad_tile", lambda *_: None)


@pytest.mark.usefixtures("without_tile_operations", "meta_autocast")
@pytest.mark.parametrize("single_tile", [False, True])
@pytest.mark.parametrize("rows", [1, 64])
def test_launches_of_a_small_call_beside_its_tiles(
    rows: int, single_tile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three operations that finish the statistics, and dhidden zeroed and rounded unless a single
    tile writes it. One more where the end of the retained logits is padded."""
    if single_tile:
        traits = replace(eager.traits("cuda"), dense_width=300, writes_dhidden=True)
        monkeypatch.setattr(eager, "traits", lambda _: traits)
    problem = on_meta(make(rows, 300, 16, dtype=torch.bfloat16))
    statistics = ("with_entropy", "with_log_sum_sq_probs", "with_mean_logits", "with_is_top1")
    call = forward_call(problem, ignore_index=None, **dict.fromkeys(statistics, False))
    with Launches() as forward:
        results = score(*call)
    given = backward_call(call, results)
    with Launches() as backward:
        found = differentiate(*given)
    padding = [] if rows % 16 == 0 else ["zero_"]
    assert sorted(forward.names) == sorted([*padding, "sub", "log", "sub"])
    assert backward.names == ([] if single_tile else ["zero_", "_to_copy"])
    assert isinstance(found, Gradients)


@pytest.mark.usefixtures("without_tile_operations", "meta_autocast")
def test_launches_do_not_grow_with_tiles() -> None:
    """One operation zeroes the padding of all slots."""
    counts = []
    for vocabulary in (5000, 50_000):
        problem = on_meta(make(3, vocabulary, 4, dtype=torch.bfloat16))
        call = forward_call(problem, ignore_index=None)
        with Launches() as forward:
            results = score(*call)
        given = backward_call(call, results, dentropy=None)
        with Launches() as backward:
            differentiate(*given)
        counts.append((len(forward.names), len(backward.names)))
    assert counts[0] == counts[1]


def test_unasked_statistics_are_not_computed() -> None:
    problem = make(**CASES["plain"])
    names = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    for asked in names:
        flags = {f"with_{name}": name == asked for name in names}
        results = score(*forward_call(problem, **flags))
        for name in names:
            assert getattr(results, name).numel() == (6 if name == asked else 0)
