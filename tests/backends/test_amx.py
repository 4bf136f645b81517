"""The AMX kernels: shapes, layouts and threads. test_amx_parts.py tests their precision."""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rao_kernels import _native
from rao_kernels.backends import cpu

from . import amx_emulation
from .tile_walk import (
    Case,
    Result,
    assert_as_good_as_eager,
    assert_same_bits,
    make_case,
    misplaced,
    walk,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.usefixtures("amx", "nan_filled_memory")

# rows, size, entries, width of a tile. Panels, strips and tiles of K are 32 long; K is cut into
# blocks beyond 48 tiles.
SHAPES = [
    *((33, size, 70, 70) for size in (1, 7, 8, 31, 32, 33, 64, 576, 1024, 1568, 2048, 2056)),
    (5, 4096, 70, 70),
    (3, 8192, 40, 40),
    *((rows, 40, 100, 64) for rows in (1, 16, 31, 32, 33, 65)),
]
# dz is formed in chunks of at most 80 strips of bf16, 40 of fp16, 26 of fp32, with partial sums of
# dweight between them.
CHUNKED = [(2600, 24, 300, 300), (900, 2600, 40, 40)]


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *CHUNKED], ids=str)
def test_shapes(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    assert_as_good_as_eager(lambda: make_case(*shape, dtype, plain=True))
    assert_as_good_as_eager(lambda: make_case(*shape, dtype, bias=True, softcap=9.0), retain=True)


@pytest.mark.parametrize("retain", [False, True], ids=["recomputed", "retained"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_padding_of_a_panel_has_no_gradient(dtype: torch.dtype, retain: bool) -> None:
    """The padding's products, 0, are so far above every logit that their probability overflows."""

    def negative(plain: bool) -> Case:
        case = make_case(40, 64, 70, 70, dtype, plain=plain, spread=0.001)
        largest = torch.linspace(88, 100, 40)[:, None].repeat(1, 64)
        head = replace(case.head, hidden=largest.to(dtype), weight=case.head.weight - 1 / 64)
        return replace(case, head=head)

    for plain in (False, True):
        assert_as_good_as_eager(lambda plain=plain: negative(plain), retain=retain)


@pytest.mark.parametrize("retain", [False, True], ids=["recomputed", "retained"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [24, 64, 1600])
def test_scattered_entries_and_rows(size: int, dtype: torch.dtype, retain: bool) -> None:
    """Entries of a tile anywhere in the weight, rows of dhidden in any order, and of the retained
    tile only some."""
    kept_rows = torch.randperm(70)[:37].sort().values
    for plain in (False, True):
        assert_as_good_as_eager(
            lambda plain=plain: make_case(70, size, 100, 45, dtype, plain=plain, scattered=True),
            retain=retain,
            kept_rows=kept_rows,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_of_another_dtype_and_layout(dtype: torch.dtype) -> None:
    """The tile is converted, and copied where its rows are not adjacent."""
    narrow, wide = (torch.bfloat16, torch.float32)
    case = make_case(40, 64, 100, 64, dtype, weight_dtype=narrow if dtype == wide else wide)
    head = case.head
    converted = replace(case, head=replace(head, weight=head.weight.to(dtype)))
    strided = replace(case, head=replace(head, weight=head.weight.T.contiguous().T))
    got, expected = walk(cpu, case, retain=False), walk(cpu, converted, retain=False)
    assert got.dweight.dtype == head.weight.dtype
    rounded = narrow if dtype == wide else dtype
    assert torch.equal(got.dweight.to(rounded), expected.dweight.to(rounded))
    assert_same_bits(replace(got, dweight=expected.dweight), expected)
    assert_same_bits(got, walk(cpu, strided, retain=False))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [33, 64, 2048])
def test_alignment_does_not_change_a_bit(size: int, dtype: torch.dtype) -> None:
    """A misaligned weight is copied panel by panel, and results are stored through the caches."""
    case = make_case(40, size, 100, 64, dtype)
    head = case.head
    moved = replace(head, hidden=misplaced(head.hidden), weight=misplaced(head.weight))
    assert moved.weight.data_ptr() % 64 == case.head.weight.itemsize
    assert_same_bits(
        walk(cpu, case, retain=True),
        walk(cpu, replace(case, head=moved, misaligned=True), retain=True),
    )


@pytest.mark.parametrize("retain", [False, True], ids=["recomputed", "retained"])
def test_rows_that_share_a_cache_set_give_the_bits_of_those_in_place(retain: bool) -> None:
    """Rows 4096 bytes apart are copied; with 32 more columns, of zeros, they are used in place."""
    case = make_case(40, 2048, 70, 70, torch.bfloat16)

    def wider(matrix: Tensor) -> Tensor:
        return torch.nn.functional.pad(matrix, (0, 32))

    head = replace(case.head, hidden=wider(case.head.hidden), weight=wider(case.head.weight))
    in_place = walk(cpu, replace(case, head=head), retain=retain)
    in_place = replace(
        in_place, dhidden=in_place.dhidden[:, :2048], dweight=in_place.dweight[:, :2048]
    )
    assert_same_bits(walk(cpu, case, retain=retain), in_place)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_threads_memory_is_at_most_that_of_the_documentation(dtype: torch.dtype) -> None:
    """docs/memory.md: at most 4.6 MB."""
    for rows, size in itertools.product((1, 512, 4096, 1 << 16), (1, 576, 1600, 2600, 4096, 8192)):
        hidden = torch.empty(1, dtype=dtype).expand(rows, size)
        width, isa = cpu.traits("cpu").dense_width, _native.ISAS.index("avx512_amx")
        for backward in (False, True):
            *_, thread = cpu._operators().scratch_sizes(isa, hidden, width, backward)
            assert thread < 4_650_000, (rows, size)


def thread_cases() -> Iterator[tuple[Case, Tensor | None]]:
    """Yield cases, each with the rows of its backward pass."""
    for dtype in (torch.bfloat16, torch.float32):
        yield make_case(140, 40, 400, 300, dtype, bias=True), None
        yield make_case(140, 40, 400, 300, dtype, scattered=True), torch.arange(0, 140, 3)
    yield make_case(70, 1600, 100, 100, torch.bfloat16, plain=True), None  # K in blocks
    yield make_case(900, 24, 100, 100, torch.float32, plain=True), None  # dz in chunks
    yield make_case(1, 64, 700, 512, torch.bfloat16), None


@pytest.mark.parametrize("retain", [False, True], ids=["recomputed", "retained"])
def test_the_number_of_threads_does_not_change_a_bit(retain: bool) -> None:
    for case, kept_rows in thread_cases():
        results = []
        for count in (1, 2, 3, 5, 16):
            torch.set_num_threads(count)
            results.append(walk(cpu, case, retain=retain, kept_rows=kept_rows))
        for other in results[1:]:
            assert_same_bits(results[0], other)


def test_retained_memory_is_the_same_for_any_number_of_threads() -> None:
    case = make_case(70, 64, 100, 64, torch.bfloat16)
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append(walk(cpu, case, retain=True).retained)
    for first, second in zip(*results, strict=True):
        assert torch.equal(first.memory, second.memory)


def at_the_end_of_its_memory(tensor: Tensor) -> Tensor:
    """Return a copy that is followed by memory the process may not read."""
    pages = -(-tensor.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    end = base + pages * mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
    start = pages * mmap.PAGESIZE - tensor.nbytes
    count = tensor.numel()
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=count, offset=start)
    return copy.view(tensor.shape).copy_(tensor)


def survives(run: Callable[[], object]) -> bool:
    """Return True if `run` finishes in a forked process."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        torch.set_num_threads(1)
        run()
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_read_beyond_the_operands(dtype: torch.dtype) -> None:
    case = make_case(37, 50, 70, 70, dtype, bias=True)
    head = case.head
    assert head.bias is not None
    guarded = replace(
        head,
        hidden=at_the_end_of_its_memory(head.hidden),
        weight=at_the_end_of_its_memory(head.weight),
        bias=at_the_end_of_its_memory(head.bias.float()),
        targets=at_the_end_of_its_memory(head.targets),
    )
    case = replace(case, head=guarded)
    for retain in (False, True):
        assert survives(lambda retain=retain: walk(cpu, case, retain=retain))
    weight = guarded.weight
    assert not survives(lambda: ctypes.string_at(weight.data_ptr(), weight.nbytes + 1))


def answers_beside_torch(case: Case, rounds: int) -> list[Result]:
    """Return results of walks between torch's bf16 products, which also configure the tiles."""
    left = torch.randn(64, 96).bfloat16()
    product = left @ left.T
    results = []
    for round_ in range(rounds):
        results.append(walk(cpu, case, retain=round_ % 2 == 0))
        assert torch.equal(torch.mm(left, left.T), product)
        assert torch.equal(torch.nn.functional.linear(left, left), product)
    return results


def test_torch_may_use_amx_between_calls() -> None:
    """On this thread, and on short-lived threads."""
    case = make_case(40, 64, 100, 64, torch.bfloat16, plain=True)
    quiet = [walk(cpu, case, retain=retain) for retain in (True, False)]
    found = answers_beside_torch(case, 4)
    for _ in range(10):
        with ThreadPoolExecutor(2) as pool:
            for job in [pool.submit(answers_beside_torch, case, 4) for _ in range(2)]:
                found += job.result()
    assert len(found) == 84
    for number, result in enumerate(found):
        assert_same_bits(result, quiet[number % 2])


@pytest.mark.parametrize("amx", ["hardware"], indirect=True)
@pytest.mark.parametrize("retain", [False, True], ids=["recomputed", "retained"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_emulated_tiles_give_the_bits_of_the_hardware(
    dtype: torch.dtype, retain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(70, 100, 300, 256, dtype, bias=True)
    hardware = walk(cpu, case, retain=retain)
    amx_emulation.install(monkeypatch, "avx512")
    assert_same_bits(hardware, walk(cpu, case, retain=retain))
