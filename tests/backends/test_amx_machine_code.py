"""The AMX kernels' shipped machine code, on a processor without AMX: amx_trap.cpp executes the tile
instructions. Results must equal those of the emulated kernels, bit for bit.

The compiler does not know that tile loads read memory and tile stores write it. If it removes or
reorders accesses around them, that shows in machine code only.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import platform
import signal
from collections.abc import Iterator
from ctypes import CDLL
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rao_kernels import _native
from rao_kernels.backends import cpu

from . import amx_emulation
from .build_script import SETUP
from .tile_walk import Case, Result, assert_same_bits, make_case, walk

NAMESPACE = "rao_native_trapped"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.usefixtures("nan_filled_memory")


@cache
def load() -> _native.CpuLibrary:
    """Load the kernels as setup.py compiles them, and those that they fall back to."""
    fallback = [*SETUP.AVX512_BF16, "-DRAO_ISA=avx512_bf16"]
    return amx_emulation.load_units(
        NAMESPACE,
        [
            *((source, SETUP.AMX_FLAGS) for source in SETUP.AMX_SOURCES),
            *((source, fallback) for source in SETUP.TILE_SOURCES),
        ],
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> CDLL:
    """amx_trap.cpp, compiled."""
    host = _native.cpu_library()
    if isinstance(host, _native.Missing):
        pytest.skip(host.reason)
    if host.amx_problem is None:
        pytest.skip("this processor does not trap instructions of the tile unit: it has one")
    if platform.system() != "Linux" or "avx512_bf16" not in host.host_isas:
        pytest.skip("the kernels' other instructions need AVX-512 BF16, and the trap Linux")
    if not SETUP.accepts(SETUP.AMX_FLAGS):
        pytest.skip(f"{SETUP.compiler()} knows no AMX")
    folder: Path = tmp_path_factory.mktemp("amx_trap")
    flags = [*SETUP.AVX512_BF16, amx_emulation.EMULATED, "-DRAO_ISA=trapped"]
    SETUP.compile_cpp("tests/backends/amx_trap.cpp", folder / "trap.o", flags)
    SETUP.run([SETUP.compiler(), "-shared", str(folder / "trap.o"), "-o", str(folder / "trap.so")])
    library = CDLL(str(folder / "trap.so"))
    library.take_problem.restype = ctypes.c_char_p
    library.take_count.restype = ctypes.c_int64
    return library


@pytest.fixture
def trap(library: CDLL) -> Iterator[CDLL]:
    """Tile instructions are trapped inside the test."""
    threads = torch.get_num_threads()
    library.trap_tiles()
    yield library
    library.stop_trapping()
    torch.set_num_threads(threads)
    library.take_count()
    library.take_problem()


def assert_same(trap: CDLL, case: Case, kept_rows: Tensor | None = None) -> None:
    """Assert that machine code gives the emulated kernels' results and retained tiles."""
    for retain in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            amx_emulation.install(patch, "avx512")
            expected = walk(cpu, case, retain=retain, kept_rows=kept_rows)
        assert trap.take_count() == 0
        with pytest.MonkeyPatch.context() as patch:
            amx_emulation.use(patch, load(), NAMESPACE)
            got = walk(cpu, case, retain=retain, kept_rows=kept_rows)
        assert trap.take_problem() is None
        assert trap.take_count() > 0
        assert_same_bits(got, expected)
        assert_same_retained(got, expected)


def assert_same_retained(got: Result, expected: Result) -> None:
    assert len(got.retained) == len(expected.retained)
    for first, second in zip(got.retained, expected.retained, strict=True):
        assert torch.equal(first.memory, second.memory)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [8, 33, 64, 576, 1600])  # the last one in blocks of K
def test_shapes(size: int, dtype: torch.dtype, trap: CDLL) -> None:
    torch.set_num_threads(1)
    assert_same(trap, make_case(40, size, 70, 70, dtype, plain=True))
    assert_same(trap, make_case(40, size, 70, 70, dtype, bias=True, softcap=9.0, scale=0.7))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scattered_entries_and_rows(dtype: torch.dtype, trap: CDLL) -> None:
    """Entries of a tile anywhere in the weight, rows of dhidden in any order."""
    case = make_case(70, 64, 100, 45, dtype, bias=True, scattered=True)
    assert_same(trap, case, torch.arange(0, 70, 2))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_chunks_of_strips(dtype: torch.dtype, threads: int, trap: CDLL) -> None:
    """Also several tiles and groups of panels; partial sums of dweight are kept between chunks."""
    torch.set_num_threads(threads)
    rows = {torch.bfloat16: 2600, torch.float16: 1400, torch.float32: 900}[dtype]
    assert_same(trap, make_case(rows, 24, 40, 40, dtype, plain=True))
    assert_same(trap, make_case(70, 96, 700, 600, dtype))


MULTIPLY = "c4e2525ce6"  # tdpbf16ps tmm4, tmm6, tmm5
CONFIGURE, RELEASE, UNKNOWN = "c4e2784907", "c4e27849c0", "0f0b"  # [rdi]; ud2


def function(code: str) -> mmap.mmap:
    """Return executable memory with instructions and a return."""
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(bytes.fromhex(code + "c3"))
    return memory


def call(code: str, configuration: bytes) -> None:
    memory = function(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.CFUNCTYPE(None, ctypes.c_char_p)(address)(configuration)


def configuration(palette: int = 1, bytes_of_6: int = 64, rows_of_6: int = 16) -> bytes:
    row_bytes = b"".join(
        (bytes_of_6 if tile == 6 else 64).to_bytes(2, "little") for tile in range(8)
    )
    rows = bytes(rows_of_6 if tile == 6 else 16 for tile in range(8))
    return bytes([palette]) + bytes(15) + row_bytes + bytes(16) + rows + bytes(8)


@pytest.mark.parametrize(
    ("code", "memory", "problem"),
    [
        (CONFIGURE + MULTIPLY + RELEASE, configuration(), None),
        (MULTIPLY, configuration(), b"without a configuration"),
        (CONFIGURE + RELEASE + MULTIPLY, configuration(), b"without a configuration"),
        (CONFIGURE + MULTIPLY, configuration(palette=0), b"palette"),
        (CONFIGURE + MULTIPLY, configuration(bytes_of_6=0), b"impossible size"),
        (CONFIGURE + MULTIPLY, configuration(bytes_of_6=0, rows_of_6=0), b"not configured"),
        (CONFIGURE + MULTIPLY, configuration(rows_of_6=8), b"not configured"),
        (CONFIGURE + MULTIPLY, configuration()[:32] + b"\1" * 32, b"reserved"),
    ],
)
def test_the_trap_is_as_strict_as_the_unit(
    code: str, memory: bytes, problem: bytes | None, trap: CDLL
) -> None:
    call(code, memory)
    call(RELEASE, b"")
    found = trap.take_problem()
    assert found is None if problem is None else problem in found


def test_another_illegal_instruction_still_kills(trap: CDLL) -> None:
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        signal.signal(signal.SIGILL, signal.SIG_DFL)
        trap.trap_tiles()
        call(RELEASE + UNKNOWN, b"")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGILL
