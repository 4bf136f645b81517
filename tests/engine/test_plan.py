"""The plan of a call: one value that every pass of the call works by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from rao_kernels import backends, engine
from rao_kernels.backends import Traits, precision_of
from rao_kernels.engine import Plan, make_plan
from rao_kernels.ops import linear_logprobs
from rao_kernels.ops.operators import linear_logprobs_op
from rao_kernels.ops.signatures import Results

from .. import seeds
from ..ops.calls import forward_call
from ..oracle import Problem

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
        call = forward_call(
            Problem(hidden, weight, targets), grad_tolerance=tolerance, workspace_bytes=workspace
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
    [
        ("eager", "cpu", "a CPU"),
        ("cpu-amx", "cpu", "a CPU with AMX"),
        ("eager", "cuda", "a GPU"),
        ("cuda", "cuda", "a GPU"),
        ("triton", "cuda", "a GPU"),
    ],
    indirect=["backend"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_page_on_memory_states_the_plan(
    dtype: torch.dtype, backend: str, device_type: str, where: str
) -> None:
    """Widths of tiles, and bytes of a retained logit for whole tiles, for many rows."""
    row = re.search(rf"^\| {where} \| (\S+) \| (\S+) \| s \+ 1/(\d+) \|$", PAGE.read_text(), re.M)
    assert row is not None
    dense, sparse, parts = (int(number.replace(",", "")) for number in row.groups())
    rows, vocabulary = 8192, 1 << 15
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


def gpu_plan(rows: int, vocabulary: int, size: int = 4096, **options: object) -> Plan:
    """A plan of the backend `cuda` on a GPU, in bf16 unless asked otherwise."""
    dtype = options.pop("dtype", torch.bfloat16)
    given = {"backend": "cuda", "device_type": "cuda", "workspace_bytes": None, **options}
    return make_plan(rows, vocabulary, size, dtype, **given)


def limits_on_the_page() -> list[tuple[int, int, int, torch.dtype, float, float]]:
    """Rows of the page's table: N, D, V, dtype, GiB of all logits, GiB of the limit."""
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    number = r"([\d,.]+)"
    row = rf"^\| {number} \| {number} \| {number} \| (bf16|fp32) \| {number} \| {number} \|$"
    found = []
    for *shape, dtype, everything, limit in re.findall(row, PAGE.read_text(), re.M):
        n, d, v = (int(cell.replace(",", "")) for cell in shape)
        found.append((n, d, v, dtypes[dtype], float(everything), float(limit)))
    return found


def test_a_gpu_retains_what_the_page_says() -> None:
    table = limits_on_the_page()
    assert len(table) == 5
    for backend in ("cuda", "triton"):
        for rows, size, vocabulary, dtype, everything, limit in table:
            plan = gpu_plan(rows, vocabulary, size, dtype=dtype, backend=backend)
            asked = gpu_plan(
                rows, vocabulary, size, dtype=dtype, backend=backend, workspace_bytes=1 << 40
            )
            assert asked.workspace_bytes / 2**30 == pytest.approx(everything, abs=0.005)
            retained = min(everything, limit)
            assert plan.workspace_bytes / 2**30 == pytest.approx(retained, abs=0.005)


def test_the_limit_of_a_gpu_grows_with_the_head_between_its_bounds() -> None:
    """From 1 GiB for a small head to 2.5 GiB."""
    limits = [gpu_plan(1 << 15, 131_072, size).workspace_bytes for size in (64, 1024, 4096, 16384)]
    assert limits == sorted(limits)
    assert limits[0] == 1 << 30 and limits[-1] == 5 << 29
    headline = gpu_plan(8192, 131_072)
    assert None not in headline.slots(8192)


@pytest.mark.parametrize(("backend", "device_type"), [("eager", "cpu"), ("eager", "cuda")])
def test_a_cpu_and_eager_retain_up_to_1_gib(backend: str, device_type: str) -> None:
    options = {"backend": backend, "device_type": device_type}
    assert gpu_plan(8192, 131_072, 8192, **options).workspace_bytes == 1 << 30


@pytest.mark.parametrize(
    ("rows", "width"),
    [(1, 1 << 18), (256, 1 << 18), (257, 1 << 17), (512, 1 << 17), (513, 1 << 16), (4096, 1 << 14),
     (4097, 1 << 13), (8192, 1 << 13), (100_000, 1 << 13)],
)  # fmt: skip
def test_few_rows_have_wide_tiles_on_a_gpu(rows: int, width: int) -> None:
    vocabulary = 1 << 18
    plan = gpu_plan(rows, vocabulary)
    assert plan.width == width
    assert width == 8192 or 4 * rows * plan.width <= 256 << 20
    assert gpu_plan(rows, vocabulary, backend="triton").width == width
    # A tile's weight or gradient is copied there, or narrow tiles drop more.
    for options in (
        {"dtype": torch.float16},
        {"weight_dtype": torch.float32},
        {"backend": "eager"},
    ):
        assert gpu_plan(rows, vocabulary, **options).width == 8192
    assert gpu_plan(rows, vocabulary, tolerance=2.0**-9).width == 4096
    assert gpu_plan(rows, vocabulary, weight_dtype=torch.bfloat16) == plan


def test_few_rows_and_a_usual_vocabulary_are_one_tile() -> None:
    for rows in (0, 1, 64, 512):
        assert rows == 0 or len(gpu_plan(rows, 128_256).tiles) == 1
        for backend in ("eager", "cpu"):
            options = {"backend": backend, "device_type": "cpu"}
            narrow = backends.get(backend).traits("cpu").dense_width
            assert gpu_plan(rows, 128_256, **options).width == narrow


@pytest.fixture
def widening(monkeypatch: pytest.MonkeyPatch) -> None:
    """`eager` with the rules of a GPU, at the size of a test."""
    traits = Traits(64, 32, retained_cost=0, widest=1024, workspace_cap=1 << 18)
    monkeypatch.setattr(backends.get("eager"), "traits", lambda _: traits)
    monkeypatch.setattr(engine.plan, "WIDENED_LOGITS", 2048)
    monkeypatch.setattr(engine.plan, "LEAST_WORKSPACE_CAP", 1 << 12)


@pytest.mark.usefixtures("widening")
@pytest.mark.parametrize("ignore_index", [-100, None])
def test_symbolic_rows_have_plain_widths(
    monkeypatch: pytest.MonkeyPatch, ignore_index: int | None
) -> None:
    plans: list[Plan] = []

    def noted(*shapes: object, **options: object) -> Plan:
        plans.append(make_plan(*shapes, **options))
        assert type(plans[-1].width) is int
        return plans[-1]

    monkeypatch.setattr(engine, "make_plan", noted)
    weight = torch.randn(1500, 16, requires_grad=True)
    torch.compiler.reset()
    compiled = torch.compile(linear_logprobs, fullgraph=True, dynamic=True, backend="aot_eager")
    widths = set()
    for rows in (2, 5, 7, 16, 30, 100):
        targets = torch.randint(0, 1500, (rows,))
        answers = []
        for run in (compiled, linear_logprobs):
            hidden = torch.randn(rows, 16, generator=seeds.generator(rows)).requires_grad_()
            logps = run(hidden, weight, targets, backend="eager", ignore_index=ignore_index)
            plans.clear()
            answers.append([logps, *torch.autograd.grad(logps.sum(), (hidden, weight))])
        assert all(map(torch.equal, *answers))
        (plan,) = plans
        assert plan.width == max(64, min(1024, 1 << (2048 // rows).bit_length() - 1))
        widths.add(plan.width)
    assert widths == {1024, 256, 128, 64}


@pytest.mark.usefixtures("widening")
@pytest.mark.parametrize("workspace", [None, 0, 100_000])
def test_a_widened_call_has_the_gradients_of_a_narrow_one(
    monkeypatch: pytest.MonkeyPatch, workspace: int | None
) -> None:
    """Though fewer rows are scored than the width was chosen for."""
    hidden, weight, targets = torch.randn(6, 16), torch.randn(1500, 16), torch.arange(6)
    targets[2] = -100
    answers = []
    for widened in (2048, 0):
        monkeypatch.setattr(engine.plan, "WIDENED_LOGITS", widened)
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        logps = linear_logprobs(*leaves, targets, backend="eager", workspace_bytes=workspace)
        upstream = torch.tensor([1.0, 0.0, 1.0, -1.0, 2.0, 0.5])
        answers.append(torch.autograd.grad(logps, leaves, upstream))
    for wide, narrow in zip(*answers, strict=True):
        torch.testing.assert_close(wide, narrow)
