"""The emulated tile unit against the pseudo-code of Intel's manual, and the kernels' vector work.

For both builds of the emulation: AVX-512, and generic vectors.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from ctypes import CDLL, c_bool, c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from . import amx_emulation
from .build_script import SETUP
from .tile_walk import assert_as_good_as_eager, make_case

SMALLEST_NORMAL = 2.0**-126
BATCH = 256  # tiles


@pytest.fixture(scope="module", params=amx_emulation.BUILDS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = [*amx_emulation.flags_of(request.param), amx_emulation.EMULATED]
    folder: Path = tmp_path_factory.mktemp("amx_arithmetic")
    source = "tests/backends/amx_arithmetic.cpp"
    SETUP.compile_cpp(source, folder / "amx.o", [*flags, "-DRAO_ISA=avx512_amx"])
    SETUP.run([SETUP.compiler(), "-shared", str(folder / "amx.o"), "-o", str(folder / "amx.so")])
    return folder / "amx.so"


@pytest.fixture
def library(path: Path) -> CDLL:
    return CDLL(str(path))


def at(tensor: Tensor) -> c_void_p:
    assert tensor.is_contiguous()
    return c_void_p(tensor.data_ptr())


def flushed(values: Tensor) -> Tensor:
    """Return `values` with denormals as zeros of their sign."""
    return torch.where(values.abs() < SMALLEST_NORMAL, torch.copysign(values * 0, values), values)


def rounded_sum(a: Tensor, b: Tensor) -> Tensor:
    """Return the float64 sum a + b as fp32, rounded once: the float64 sum is rounded to odd."""
    total = a + b
    back = total - a
    lost = (a - (total - back)) + (b - back)
    bits = total.view(torch.int64)
    even = (bits & 1) == 0
    # The odd neighbour, on the side of the remainder.
    inwards = lost.sign() == -total.sign()
    odd = torch.where(inwards, bits - 1, bits + 1)
    exact = (lost == 0) | ~total.isfinite() | ~even
    total = torch.where(exact, bits, odd).view(torch.float64)
    return flushed(total.float())


def manual(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return TDPBF16PS of a [16, 32] and b [16, 16, 2] to c [16, 16], for a batch."""
    left = flushed(a.float()).double().view(-1, 16, 1, 16, 2)
    right = flushed(b.float()).double().view(-1, 1, 16, 16, 2).transpose(2, 3)
    chains = torch.zeros(len(a), 16, 16, 2)
    for pair in range(16):
        product = left[:, :, :, pair] * right[:, :, :, pair]
        chains = rounded_sum(product, chains.double())
    dot = rounded_sum(chains[..., 0].double(), chains[..., 1].double())
    return rounded_sum(flushed(c).double(), dot.double())


def any_bits(*shape: int) -> Tensor:
    return torch.randint(-(2**15), 2**15, shape, dtype=torch.int16).view(torch.bfloat16)


def operands(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    shape = (BATCH, 16, 32)
    c = torch.randn(BATCH, 16, 16)
    if kind == "any bits":
        bits = torch.randint(-(2**31), 2**31, c.shape).to(torch.int32)
        return any_bits(*shape), any_bits(*shape), bits.view(torch.float32)
    a, b = torch.randn(shape), torch.randn(shape)
    if kind == "wide exponents":
        a, b = (t * 2.0 ** torch.randint(-40, 40, shape) for t in (a, b))
    elif kind == "around the smallest normal":
        a, b = a * 2.0**-62, b * 2.0 ** torch.randint(-68, -60, shape)
        c = c * 2.0 ** torch.randint(-130, -120, c.shape)
    elif kind == "denormals":
        a, c = a * 2.0 ** torch.randint(-130, -120, shape), c * 1e-38
    elif kind == "infinities":
        a[torch.rand(shape) < 0.01] = torch.inf
        b[torch.rand(shape) < 0.01] = -torch.inf
        b[torch.rand(shape) < 0.01] = 0.0
        c[torch.rand(c.shape) < 0.01] = torch.inf
    return a.bfloat16(), b.bfloat16(), c


KINDS = (
    "normal",
    "wide exponents",
    "around the smallest normal",
    "denormals",
    "any bits",
    "infinities",
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_of_tiles_is_the_manuals(library: CDLL, kind: str) -> None:
    a, b, c = operands(kind)
    expected, got = manual(a, b, c), c.clone()
    library.multiply_tiles(at(a), at(b), at(got), c_int64(BATCH))
    assert torch.equal(got.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(got[number].view(torch.int32), expected[number].view(torch.int32))
    if kind in ("any bits", "infinities"):
        assert expected.isinf().any() and number.any()


def test_rows_of_a_tile_have_a_stride(library: CDLL) -> None:
    source, target = torch.randn(16, 37), torch.empty(16, 16)
    library.copy_tile(at(source), c_int64(37 * 4), c_bool(False), at(target))
    assert torch.equal(target, source[:, :16])
    library.copy_tile(at(source), c_int64(37 * 4), c_bool(True), at(target))
    assert not target.any()


@pytest.mark.parametrize("use", ["zero_without_configuration", "multiply_after_the_scope"])
def test_a_tile_without_configuration_traps(path: Path, use: str) -> None:
    code = f"import ctypes; ctypes.CDLL({str(path)!r}).{use}()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert -result.returncode in (signal.SIGILL, signal.SIGTRAP)


def interesting_floats() -> Tensor:
    """Return random bits, ties of bf16, denormals, numbers around the extremes, inf and NaN."""
    bits = torch.randint(-(2**31), 2**31, (1 << 15,))
    bits[:4096] = bits[:4096] & ~0xFFFF | 0x8000
    bits[4096:6144] &= 0x007FFFFF | (1 << 31)
    special = [0x0, 0x007FFFFF, 0x00800000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000]
    special += [0x7F800001, 0x7FFFFFFF, 0x7FC00000]
    bits[-len(special) :] = torch.tensor(special)
    return torch.cat([bits, bits ^ (1 << 31)]).to(torch.int32).view(torch.float32)


def test_rounding_to_bf16(library: CDLL) -> None:
    x = interesting_floats()
    got = torch.empty_like(x, dtype=torch.bfloat16)
    library.round_to_bf16(at(x), c_int64(len(x)), at(got))
    expected = flushed(x).bfloat16()
    assert torch.equal(got.isnan(), x.isnan())
    number = ~x.isnan()
    assert torch.equal(got[number].view(torch.int16), expected[number].view(torch.int16))


def test_float32_is_the_sum_of_three_parts(library: CDLL) -> None:
    x = interesting_floats()
    x = x[(x.abs() >= 2.0**-103) & (x.abs() <= 3.39e38) | (x == 0)]
    x = x[: len(x) // 32 * 32].contiguous()
    parts = torch.empty(3, len(x), dtype=torch.bfloat16)
    library.split_float32(at(x), c_int64(len(x)), at(parts))
    assert torch.equal(parts.double().sum(0), x.double())
    assert torch.equal(flushed(parts.float()), parts.float())
    assert torch.equal(parts[0], x.bfloat16())


def test_every_finite_float16_is_the_sum_of_two_parts(library: CDLL) -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    parts = torch.empty(2, len(bits), dtype=torch.bfloat16)
    library.split_float16(at(bits), c_int64(len(bits)), at(parts))
    x = bits.view(torch.float16)
    finite = x.isfinite()
    assert int(finite.sum()) == 2 * 31 * 1024
    assert torch.equal(parts[:, finite].double().sum(0), x[finite].double())


def of_bits(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


@pytest.mark.parametrize("size", [1, 15, 16, 64, 65, 200])
def test_the_range_that_three_parts_represent(library: CDLL, size: int) -> None:
    library.is_row_exact.restype = c_bool
    inside = [0.0, of_bits(0x0C000000), of_bits(0x7F7F7FFF), 1.0]
    outside = [of_bits(0x0BFFFFFF), 2.0**-149, of_bits(0x7F7F8000), torch.inf, torch.nan]
    for sign in (1.0, -1.0):
        for values, exact in ((inside, True), (outside, False)):
            for value in values:
                for position in {0, size // 2, size - 1}:
                    row = torch.randn(size).abs() + 1
                    row[position] = sign * value
                    assert library.is_row_exact(at(row), c_int64(size)) == exact, (value, position)


def test_rows_interleave_and_transpose(library: CDLL) -> None:
    first, second = (any_bits(32).view(torch.int16) for _ in range(2))
    pairs = torch.empty(32, 2, dtype=torch.int16)
    library.interleave(at(first), at(second), at(pairs))
    assert torch.equal(pairs, torch.stack([first, second], 1))
    square = torch.randint(0, 2**31, (16, 16)).to(torch.int32)
    turned = torch.empty_like(square)
    library.transpose_16(at(square), at(turned))
    assert torch.equal(turned, square.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("build", amx_emulation.BUILDS)
def test_kernels_of_every_build(
    build: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    amx_emulation.install(monkeypatch, build)
    assert_as_good_as_eager(lambda: make_case(37, 70, 100, 64, dtype, plain=True))
    assert_as_good_as_eager(lambda: make_case(37, 70, 100, 64, dtype, bias=True), retain=True)
