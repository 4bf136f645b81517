"""Memory: what a call takes beyond its operands and results is what the page on it promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rao_kernels import _memory, backends, engine, release_memory
from rao_kernels.backends import Head
from rao_kernels.ops import linear_logprobs

CPU = torch.device("cpu")


def peak_extra(call: Callable[[], Tensor]) -> int:
    """Most bytes of tensors alive at once inside the call, less those of what it returns, which
    must be alive then. The profiler sees what torch allocates, so everything is allocated there."""
    activities = [ProfilerActivity.CPU]
    with _memory.unpooled(), profile(activities=activities, profile_memory=True) as recorded:
        result = call().untyped_storage().nbytes()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak - result


def measured(rows: int, size: int, vocabulary: int, **options: object) -> int:
    hidden = torch.randn(rows, size).bfloat16().requires_grad_()
    weight = torch.randn(vocabulary, size).bfloat16().requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,))

    def call() -> Tensor:
        """dweight: dhidden is rounded from its accumulator once the scratch is gone."""
        logps = linear_logprobs(hidden, weight, targets, backend="cpu", **options)
        return torch.autograd.grad(logps.sum(), (hidden, weight))[1]

    return peak_extra(call)


def plan_on_cpu(rows: int, size: int, vocabulary: int, workspace: int | None) -> engine.Plan:
    return engine.make_plan(
        rows,
        vocabulary,
        size,
        torch.bfloat16,
        backend="cpu",
        device_type="cpu",
        workspace_bytes=workspace,
    )


def promised(rows: int, size: int, vocabulary: int, workspace: int | None) -> int:
    """docs/memory.md: the plan's workspace, one pass's scratch, the fp32 accumulator of dhidden."""
    plan = plan_on_cpu(rows, size, vocabulary, workspace)
    head = Head(
        torch.empty(rows, size, dtype=torch.bfloat16),
        torch.empty(1, size, dtype=torch.bfloat16),
        None,
        torch.empty(rows, dtype=torch.int64),
        1.0,
        None,
    )
    scratch = backends.get("cpu").scratch(head, plan.width, backward=True)
    accumulator = plan.precision.accumulate.itemsize * rows * size
    return plan.workspace_bytes + sum(buffer.nbytes for buffer in scratch) + accumulator


def require_cpu_library() -> None:
    if reason := backends.reasons(CPU, torch.bfloat16)["cpu"]:
        pytest.skip(f"backend 'cpu': {reason}")


@pytest.mark.parametrize(
    ("backend", "shape"),
    [("cpu", (1024, 256, 16384)), ("cpu-amx", (512, 64, 8192))],
    indirect=["backend"],
)
@pytest.mark.parametrize("workspace", [0, 4 << 20, None])
def test_extra_memory_is_what_was_promised(
    workspace: int | None, backend: str, shape: tuple[int, int, int]
) -> None:
    require_cpu_library()
    promise = promised(*shape, workspace)
    assert measured(*shape, workspace_bytes=workspace) == pytest.approx(promise, rel=0.1)


@pytest.mark.parametrize(
    ("backend", "shape"),
    [("cpu", (1024, 128, 131072)), ("cpu-amx", (512, 32, 131072))],
    indirect=["backend"],
)
def test_nothing_retained_is_a_twentieth_of_the_logits(
    backend: str, shape: tuple[int, int, int]
) -> None:
    require_cpu_library()
    rows, size, vocabulary = shape
    extra = measured(rows, size, vocabulary, workspace_bytes=0)
    assert extra < 0.05 * 4 * rows * vocabulary
    assert extra == pytest.approx(promised(rows, size, vocabulary, 0), rel=0.1)


def test_what_is_kept_for_later_calls_is_what_one_call_takes() -> None:
    """The retained logits and dweight, here the two that are large, however often it is called."""
    require_cpu_library()
    rows, size, vocabulary = 400, 256, 81920
    hidden = torch.randn(rows, size).bfloat16()
    weight = torch.randn(vocabulary, size).bfloat16().requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,))
    retained = plan_on_cpu(rows, size, vocabulary, None).workspace_bytes
    assert min(retained, weight.nbytes) > _memory.THRESHOLD
    release_memory()
    for _ in range(3):
        linear_logprobs(hidden, weight, targets, backend="cpu").sum().backward()
        weight.grad = None
    assert sum(map(len, _memory._free)) == retained + weight.nbytes
    release_memory()
    assert _memory._free == []
