"""Products on a GPU without one: on meta tensors, and on a CPU that imitates torch's GEMMs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from threading import Barrier, Thread

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rao_kernels.backends import Gradients, Head, Tile, gemm, products
from rao_kernels.ops import linear_logprobs

from ..cases import PROBLEMS, error, make
from .test_contract import WORKSPACES, assert_as_good_as_torch, case, run

HALVES = (torch.bfloat16, torch.float16)
V, D, W = 700, 48, 256
MATMUL = torch.backends.cuda.matmul
mm, addmm = torch.mm, torch.addmm


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every tensor is taken for one on a GPU."""
    for module in (gemm, products):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: True)
    gemm._fp32_sums.cache_clear()
    yield
    gemm._fp32_sums.cache_clear()


@pytest.fixture
def imitated(gpu: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch's GEMMs with an `out_dtype`, as a GPU has them; the names of those that were called."""
    calls: list[str] = []

    def imitated_mm(a: Tensor, b: Tensor, out_dtype: object = None, out: object = None) -> Tensor:
        calls.append("mm" if out_dtype is None else "mm to fp32")
        return mm(a, b, out=out) if out_dtype is None else mm(a.float(), b.float(), out=out)

    def imitated_addmm(
        total: Tensor, a: Tensor, b: Tensor, out_dtype: object = None, out: object = None
    ) -> Tensor:
        calls.append("addmm" if out_dtype is None else "addmm to fp32")
        assert total.dtype == torch.float32
        a, b = (a, b) if out_dtype is None else (a.float(), b.float())
        return addmm(total, a, b, out=out)

    monkeypatch.setattr(torch, "mm", imitated_mm)
    monkeypatch.setattr(torch, "addmm", imitated_addmm)
    return calls


class Recorded(TorchDispatchMode):
    """Records the operators that run inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.operators.append(str(func))
        return func(*args, **(kwargs or {}))

    def gemms(self) -> list[str]:
        return [name for name in self.operators if "mm" in name]


def head_on_meta(rows: int, dtype: torch.dtype) -> Head:
    return Head(
        torch.empty(rows, D, dtype=dtype, device="meta"),
        torch.empty(V, D, dtype=dtype, device="meta"),
        None,
        torch.empty(rows, dtype=torch.int64, device="meta"),
        1.0,
        None,
    )


def tile_on_meta(permuted: bool) -> Tile:
    entries = torch.empty(W, dtype=torch.int64, device="meta") if permuted else None
    return Tile(0, W, entries)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_logits_are_one_gemm_into_strided_memory(dtype: torch.dtype, permuted: bool) -> None:
    head, tile = head_on_meta(12, dtype), tile_on_meta(permuted)
    out = torch.empty(12, W + 64, device="meta")[:, :W]
    gemm._fp32_sums(out.device, dtype)
    with Recorded() as recorded:
        got = products.logits(head, tile, out)
    assert got is out and got.shape == (12, W) and got.stride() == (W + 64, 1)
    assert recorded.gemms() == ["aten.mm.out" if dtype == torch.float32 else "aten.mm.dtype_out"]
    assert not any("copy" in name for name in recorded.operators)
    assert products.logits(head, tile).dtype == torch.float32


# The GEMMs of backward: into dhidden, of several rows and of one, and into dweight.
ADDED = {torch.float32: "aten.addmm.out"} | dict.fromkeys(HALVES, "aten.addmm.dtype_out")
ADDED_TO_ONE = ADDED | dict.fromkeys(HALVES, "aten.mm.dtype")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("some_rows", [False, True])
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("rows", [1, 12])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_gradients_are_two_gemms_of_the_operands_dtype(
    dtype: torch.dtype, rows: int, permuted: bool, some_rows: bool
) -> None:
    head, tile = head_on_meta(rows, dtype), tile_on_meta(permuted)
    unscale = torch.empty((), device="meta") if dtype == torch.float16 else None
    index = torch.empty(rows, dtype=torch.int64, device="meta") if some_rows else None
    out = Gradients(
        torch.empty(rows + 5 * some_rows, D, device="meta"),
        torch.empty(V, D, dtype=dtype, device="meta"),
        torch.empty(V, device="meta"),
        unscale,
        index,
    )
    dz = torch.empty(rows, W + 64, dtype=dtype, device="meta")[:, :W]
    gemm._fp32_sums(dz.device, dtype)
    with Recorded() as recorded:
        weight = products.weight_of_gradients(head, tile, None, out)
        products.add_products(head, tile, dz, out, weight)
    into_dweight = "aten.mm.default" if permuted else "aten.mm.out"
    if unscale is not None:
        into_dweight = "aten.mm.dtype"
    into_dhidden = (ADDED_TO_ONE if rows == 1 else ADDED)[dtype]
    assert recorded.gemms() == [into_dhidden, into_dweight]
    copies = recorded.operators.count("aten._to_copy.default")
    assert copies == (unscale is not None and permuted)


@pytest.mark.parametrize("workspace", WORKSPACES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_values_and_gradients(
    name: str, dtype: torch.dtype, workspace: str, imitated: list[str]
) -> None:
    assert_as_good_as_torch(
        lambda problem: run(problem, "eager", WORKSPACES[workspace]),
        lambda seed: case(name, dtype, seed),
    )


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_sparse_backward(dtype: torch.dtype, imitated: list[str]) -> None:
    problem = make(40, 5000, 48, dtype=dtype, logit_std=9.0)
    assert problem.dlogp is not None

    def gradients() -> tuple[Tensor, ...]:
        hidden, weight = (x.clone().requires_grad_() for x in (problem.hidden, problem.weight))
        logps = linear_logprobs(
            hidden, weight, problem.targets, grad_tolerance=2.0**-9, backend="eager"
        )
        return torch.autograd.grad(logps, (hidden, weight), problem.dlogp.to(logps.dtype))

    got = gradients()
    assert "mm to fp32" in imitated and "addmm to fp32" in imitated
    with pytest.MonkeyPatch.context() as plain:
        for module in (gemm, products):
            plain.setattr(module, "on_gpu", lambda tensor: False)
        expected = gradients()
    for mine, true in zip(got, expected, strict=True):
        assert error(mine.double(), true.double()) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("refused", [("mm", "addmm"), ("addmm",)], ids=str)
def test_a_torch_without_a_gemm_is_tried_once_and_named(
    refused: tuple[str, ...],
    imitated: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """ROCm before 2.10, and composable kernels on it, have none that returns fp32."""
    tries: list[str] = []

    def refuse(name: str) -> None:
        call: Callable[..., Tensor] = getattr(torch, name)

        def tried(*given: Tensor, out_dtype: object = None, out: object = None) -> Tensor:
            if out_dtype is None:
                return call(*given, out=out)
            tries.append(name)
            raise RuntimeError("output type float is not supported for ROCm")

        monkeypatch.setattr(torch, name, tried)

    for name in refused:
        refuse(name)
    a, b = torch.randn(7, 32).bfloat16(), torch.randn(32, 9).bfloat16()
    truth = a.double() @ b.double()
    with caplog.at_level(logging.WARNING, "rao_kernels"):
        for _ in range(3):
            total = torch.ones(7, 9)
            gemm.add_product(total, a, b)
            assert error(total.double(), truth + 1) < 1e-6
            assert error(gemm.product(a, b, torch.float32).double(), truth) < 1e-6
    assert tries == list(refused)
    assert len(caplog.records) == len(tries)
    assert "not supported for ROCm" in caplog.text and torch.__version__ in caplog.text
    assert ("mm to fp32" in imitated) == ("mm" not in refused)


def test_running_out_of_memory_is_no_answer(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **options: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "mm", full)
    with pytest.raises(torch.OutOfMemoryError):
        gemm._fp32_sums(torch.device("cpu"), torch.bfloat16)


@pytest.fixture
def settings() -> Iterator[None]:
    """torch's settings of products, restored after the test."""
    yield
    torch.set_float32_matmul_precision("highest")
    MATMUL.fp32_precision = "none"
    MATMUL.allow_fp16_accumulation = False
    MATMUL.allow_bf16_reduced_precision_reduction = True  # torch's default


def seen_inside(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the values that a setting has inside the products of both kinds."""
    seen: list[object] = []
    for call in ("mm", "addmm"):
        inner = getattr(torch, call)

        def spied(*given: Tensor, gemm: Callable[..., Tensor] = inner, **how: object) -> Tensor:
            seen.append(getattr(MATMUL, name))
            return gemm(*given, **how)

        monkeypatch.setattr(torch, call, spied)
    a = torch.ones(4, 4, dtype=dtype)
    gemm.product(a, a, torch.float32)
    gemm.product(a, a, dtype)
    gemm.add_product(torch.zeros(4, 4), a, a)
    return seen


def set_high() -> None:
    torch.set_float32_matmul_precision("high")


def set_medium() -> None:
    torch.set_float32_matmul_precision("medium")


def set_tf32() -> None:
    MATMUL.fp32_precision = "tf32"


@pytest.mark.usefixtures("settings", "imitated")
@pytest.mark.parametrize("ask_for_tf32", [set_high, set_medium, set_tf32])
def test_float32_is_not_multiplied_as_tf32(
    ask_for_tf32: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_for_tf32()
    assert MATMUL.fp32_precision == "tf32"
    assert seen_inside("fp32_precision", torch.float32, monkeypatch) == ["ieee"] * 3
    assert MATMUL.fp32_precision == "tf32"
    if ask_for_tf32 is not set_tf32:
        assert torch.get_float32_matmul_precision() == ask_for_tf32.__name__.removeprefix("set_")
        assert MATMUL.allow_tf32


@pytest.mark.usefixtures("settings", "imitated")
def test_float16_is_not_summed_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    MATMUL.allow_fp16_accumulation = True
    seen = seen_inside("allow_fp16_accumulation", torch.float16, monkeypatch)
    assert len(seen) >= 3 and not any(seen)
    assert MATMUL.allow_fp16_accumulation


@pytest.mark.usefixtures("settings", "imitated")
@pytest.mark.parametrize("allowed", [True, False])
def test_parts_of_a_sum_are_not_rounded_to_bfloat16(
    allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "allow_bf16_reduced_precision_reduction"
    setattr(MATMUL, name, allowed)
    seen = seen_inside(name, torch.bfloat16, monkeypatch)
    assert len(seen) >= 3 and not any(seen)
    assert getattr(MATMUL, name) is allowed


@pytest.mark.usefixtures("settings")
def test_settings_of_a_cpu_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    set_tf32()
    assert seen_inside("fp32_precision", torch.float32, monkeypatch) == ["tf32"] * 3


@pytest.mark.usefixtures("settings", "gpu")
def test_the_setting_is_restored_after_an_error() -> None:
    set_high()
    with pytest.raises(RuntimeError):
        gemm.product(torch.ones(2, 3), torch.ones(2, 3), torch.float32)
    assert MATMUL.fp32_precision == "tf32"


@pytest.mark.usefixtures("settings", "imitated")
def test_the_last_of_several_threads_restores_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    set_high()
    meet, seen = Barrier(2), []
    inner = torch.mm

    def slow(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        meet.wait(10)
        seen.append(MATMUL.fp32_precision)
        if len(a) == 2:
            meet.wait(10)  # the other thread has left
            seen.append(MATMUL.fp32_precision)
        return inner(a, b, out=out)

    monkeypatch.setattr(torch, "mm", slow)

    def first() -> None:
        gemm.product(torch.ones(2, 2), torch.ones(2, 2), torch.float32)

    def second() -> None:
        gemm.product(torch.ones(3, 3), torch.ones(3, 3), torch.float32)
        meet.wait(10)

    threads = [Thread(target=first), Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["ieee"] * 3
    assert MATMUL.fp32_precision == "tf32"


@pytest.mark.usefixtures("settings", "imitated")
def test_a_setting_that_another_thread_changes_meanwhile_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_tf32()
    inner = torch.mm

    def changing(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        MATMUL.fp32_precision = "none"
        return inner(a, b, out=out)

    monkeypatch.setattr(torch, "mm", changing)
    gemm.product(torch.ones(2, 2), torch.ones(2, 2), torch.float32)
    assert MATMUL.fp32_precision == "none"


@pytest.mark.parametrize("name", ["mm", "addmm"])
def test_torch_has_the_overloads(name: str) -> None:
    schema = getattr(torch.ops.aten, name).dtype_out._schema
    assert {"out_dtype", "out"} <= {argument.name for argument in schema.arguments}


def test_the_weight_of_a_tile_is_gathered_once(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the logits of a recomputed tile, and for their gradient."""
    gathered: list[tuple[Head, int]] = []
    weight_tile = Head.weight_tile

    def counted(head: Head, tile: Tile) -> Tensor:
        gathered.append((head, tile.start))
        return weight_tile(head, tile)

    monkeypatch.setattr(Head, "weight_tile", counted)
    problem = make(24, 3300, 24, logit_std=9.0)
    assert problem.dlogp is not None
    hidden, weight = (x.clone().requires_grad_() for x in (problem.hidden, problem.weight))
    logps = linear_logprobs(
        hidden,
        weight,
        problem.targets,
        grad_tolerance=2.0**-7,
        workspace_bytes=0,
        backend=backend,
    )
    forward = len(gathered)
    torch.autograd.grad(logps, (hidden, weight), problem.dlogp.float())
    backward = len(gathered) - forward
    assert backward <= forward
    assert (forward > 0) == (backend != "cpu")
