"""The plan of a call: one value that every pass of the call works by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from rao_kernels import backends, engine
from rao_kernels.backends import precision_of
from rao_kernels.engine import Plan, make_plan
from rao_kernels.ops import linear_logprobs
from rao_kernels.ops.operators import Forward, Results, linear_logprobs_op

N, D, V = 24, 8, 9000
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "memory.md"
HALF = N * V * 4 // 2


def plan_of(rows: int = N, *, dtype: torch.dtype = torch.float32, **options: object) -> Plan:
    given = {"backend": "eager", "device_type": "cpu", "workspace_bytes": None, **options}
    return make_plan(rows, V, D, dtype, **given)


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = torch.randn(N, D).to(dtype), torch.randn(V, D).to(dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(0, V, (N,))


@pytest.mark.parametrize("ignored", [0, N // 2, N])
@pytest.mark.parametrize("tolerance", [0.0, 2.0**-7])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("workspace", [None, 0, 1000, HALF, 1 << 40])
def test_forward_and_backward_work_by_the_same_plan(
    monkeypatch: pytest.MonkeyPatch,
    workspace: int | None,
    softcap: float | None,
    tolerance: float,
    ignored: int,
) -> None:
    plans: list[Plan] = []

    def noted(*shapes: object, **options: object) -> Plan:
        plans.append(make_plan(*shapes, **options))
        return plans[-1]

    monkeypatch.setattr(engine, "make_plan", noted)
    hidden, weight, targets = operands(torch.bfloat16)
    targets[:ignored] = -100
    logps = linear_logprobs(
        hidden,
        weight,
        targets,
        backend="eager",
        logit_softcap=softcap,
        workspace_bytes=workspace,
        grad_tolerance=tolerance,
    )
    logps.sum().backward()
    forward, backward = plans
    assert forward == backward
    assert forward.sparse == (tolerance > 0) and forward.rows == N


@pytest.mark.parametrize("tolerance", [0.0, 2.0**-7])
@pytest.mark.parametrize("workspace", [None, 0, HALF])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_fake_tensors_have_the_sizes_and_dtypes_of_the_plan(
    dtype: torch.dtype, workspace: int | None, tolerance: float
) -> None:
    plan = plan_of(dtype=dtype, workspace_bytes=workspace, tolerance=tolerance)

    def results(hidden: Tensor, weight: Tensor, targets: Tensor) -> Results:
        call = Forward(
            hidden=hidden,
            weight=weight,
            bias=None,
            targets=targets,
            scale=1.0,
            softcap=None,
            ignore_index=-100,
            compute_dtype=dtype,
            grad_tolerance=tolerance,
            vocab_order=None,
            workspace_bytes=workspace,
            backend="eager",
            with_entropy=True,
            with_log_sum_sq_probs=True,
            with_mean_logits=True,
        )
        return Results(*((one.shape, one.dtype) for one in linear_logprobs_op(*call)))

    real = operands(dtype)
    with FakeTensorMode() as mode:
        fakes = results(*(mode.from_tensor(one) for one in real))
    found = results(*real)
    assert fakes == found
    assert found.logp == (torch.Size([N]), plan.precision.accumulate)
    assert found.retained == (torch.Size([plan.workspace_bytes]), torch.uint8)
    if plan.sparse:
        assert found.tile_mass == (torch.Size([N, len(plan.tiles)]), plan.precision.accumulate)


@pytest.mark.parametrize("rows", [1, 7, N])
@pytest.mark.parametrize("workspace", [0, 1000, HALF, 1 << 40])
def test_slots_lie_apart_inside_the_workspace(workspace: int, rows: int) -> None:
    """The first tiles that fit, aligned, each of the backend's size."""
    plan = plan_of(workspace_bytes=workspace, tile_width=700)
    precision, eager = precision_of(torch.float32), backends.get("eager")
    end, slots = 0, plan.slots(rows)
    assert len(slots) == len(plan.tiles) == -(-V // 700)
    for tile, slot in zip(plan.tiles, slots, strict=True):
        start = -(-end // 64) * 64
        end = start + eager.retained_bytes(rows, tile.width, precision)
        fits = -(-end // 64) * 64 <= plan.workspace_bytes
        assert slot == ((start, end) if fits else None)
    assert workspace < 1 << 40 or None not in slots
    assert workspace > 1000 or rows < N or slots == [None] * len(slots)
    assert plan.slots(0) == [None] * len(slots)


def test_tiles_cover_the_vocabulary() -> None:
    for width in (1, 700, V - 1, V, 2 * V):
        plan = plan_of(tile_width=width)
        edges = [(tile.start, tile.stop) for tile in plan.tiles]
        assert [start for start, _ in edges] == [0, *(stop for _, stop in edges[:-1])]
        assert edges[-1][1] == V and plan.width == min(width, V)


def test_half_precision_under_a_softcap_retains_nothing_unless_asked() -> None:
    for dtype, kept in ((torch.float32, True), (torch.bfloat16, False), (torch.float16, False)):
        assert bool(plan_of(dtype=dtype, softcap=5.0).workspace_bytes) == kept
        assert plan_of(dtype=dtype, softcap=5.0, workspace_bytes=1 << 40).workspace_bytes
        assert plan_of(dtype=dtype).workspace_bytes


def test_only_the_plan_derives_widths_and_sizes() -> None:
    """Other modules take them from the plan, or what is planned and what runs could differ."""
    derives = re.compile(r"\.(traits|retained_bytes)\(|\b(dense|sparse)_width\b")
    backends_folder, found = ROOT / "rao_kernels" / "backends", []
    for module in (ROOT / "rao_kernels").rglob("*.py"):
        if not module.is_relative_to(backends_folder) and derives.search(module.read_text()):
            found.append(str(module.relative_to(ROOT)))
    assert found == ["rao_kernels/engine/plan.py"]


@pytest.mark.parametrize(
    ("backend", "device_type", "where"),
    [("eager", "cpu", "a CPU"), ("cpu-amx", "cpu", "a CPU with AMX"), ("eager", "cuda", "a GPU")],
    indirect=["backend"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_page_on_memory_states_the_plan(
    dtype: torch.dtype, backend: str, device_type: str, where: str
) -> None:
    """Widths of tiles, and bytes of a retained logit for whole tiles and 32 rows."""
    row = re.search(rf"^\| {where} \| (\S+) \| (\S+) \| s \+ 1/(\d+) \|$", PAGE.read_text(), re.M)
    assert row is not None
    dense, sparse, parts = (int(number.replace(",", "")) for number in row.groups())
    rows, vocabulary = 32, 1 << 15
    for width, tolerance in ((dense, 0.0), (sparse, 2.0**-9)):
        plan = make_plan(
            rows,
            vocabulary,
            D,
            dtype,
            backend=backend,
            device_type=device_type,
            workspace_bytes=1 << 40,
            tolerance=tolerance,
        )
        assert plan.width == width
        logits = rows * vocabulary
        expected = logits * dtype.itemsize + logits // parts
        assert 0 <= plan.workspace_bytes - expected <= 64 * len(plan.tiles)
