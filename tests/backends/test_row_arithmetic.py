"""The arithmetic that all devices share (csrc/include/rao), on the host, against float64."""

from __future__ import annotations

from ctypes import CDLL, c_float, c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from .build_script import SETUP

ENTRIES = 1000
EPSILON = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> CDLL:
    folder: Path = tmp_path_factory.mktemp("row_arithmetic")
    SETUP.compile_cpp("tests/backends/row_arithmetic.cpp", folder / "rows.o", [])
    SETUP.run([SETUP.compiler(), "-shared", str(folder / "rows.o"), "-o", str(folder / "rows.so")])
    return CDLL(str(folder / "rows.so"))


def at(tensor: Tensor) -> c_void_p:
    assert tensor.is_contiguous() and tensor.dtype == torch.float32
    return c_void_p(tensor.data_ptr())


def _logits(name: str) -> Tensor:
    z = torch.randn(ENTRIES) * 3
    if name == "peaked":
        z[417] += 60
    elif name == "begins with -inf":
        z[:600] = -torch.inf
    elif name == "strongly negative":
        z -= 1e4
    elif name == "rising":
        z = z.sort().values * 10
    return z


@pytest.mark.parametrize("step", [1, 7, 256, ENTRIES])
@pytest.mark.parametrize(
    "name", ["flat", "peaked", "begins with -inf", "strongly negative", "rising"]
)
def test_sums_of_a_row(library: CDLL, name: str, step: int) -> None:
    z, out = _logits(name), torch.empty(5)
    library.row_sums(at(z), c_int64(ENTRIES), c_int64(step), at(out))
    exact = z.double()
    centred = exact - exact.max()
    e = centred.exp()
    weighted = (e * centred).nan_to_num()
    truth = torch.stack([exact.max(), e.sum(), weighted.sum(), (e * e).sum(), exact.sum()])
    sizes = torch.stack([truth[0], e.sum(), weighted.abs().sum(), (e * e).sum(), exact.abs().sum()])
    wrong = (out.double() - truth).abs() > 64 * EPSILON * sizes.abs()
    assert out[0] == z.max()
    assert not wrong.any()


def test_a_row_without_probabilities(library: CDLL) -> None:
    z, out = torch.full((ENTRIES,), -torch.inf), torch.empty(5)
    library.row_sums(at(z), c_int64(ENTRIES), c_int64(64), at(out))
    assert out.tolist() == [-torch.inf, 0.0, 0.0, 0.0, -torch.inf]


def test_a_nan_shows_in_the_sums(library: CDLL) -> None:
    z, out = torch.randn(ENTRIES), torch.empty(5)
    z[3] = torch.nan
    library.row_sums(at(z), c_int64(ENTRIES), c_int64(64), at(out))
    assert out[1].isnan() and out[2].isnan()


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_logits_and_their_slope(library: CDLL, scale: float, softcap: float) -> None:
    x = torch.cat([torch.randn(ENTRIES) * 6, torch.tensor([0.0, 1e-6, 100.0, -100.0])])
    z, slope = torch.empty_like(x), torch.empty_like(x)
    library.row_logits(at(x), c_int64(len(x)), c_float(scale), c_float(softcap), at(z), at(slope))
    exact = x.double()
    capped = torch.tanh(exact / softcap) if softcap else exact
    truth = capped * (softcap or 1.0) * scale
    true_slope = 1 - capped**2 if softcap else torch.ones_like(exact)
    torch.testing.assert_close(z.double(), truth, rtol=8 * EPSILON, atol=0.0)
    torch.testing.assert_close(slope.double(), true_slope, rtol=0.0, atol=8 * EPSILON)


@pytest.mark.parametrize("target", [-1, 10, 417])
@pytest.mark.parametrize("name", ["flat", "peaked", "begins with -inf"])
def test_gradient_of_a_row(library: CDLL, name: str, target: int) -> None:
    z, dz, scale = _logits(name), torch.empty(ENTRIES), -0.7
    log_sum = torch.logsumexp(z.double() - z.max(), 0)
    log_p = (z.double() - z.max()) - log_sum
    row = torch.cat([torch.stack([z.max(), log_sum, log_p[target]]), torch.randn(3)]).float()
    logp_grad, p_factor, p_log_p_factor = row[3:].tolist()
    library.row_gradients(at(z), c_int64(ENTRIES), at(row), c_float(scale), c_int64(target), at(dz))
    p = log_p.exp()
    truth = p * (p_factor - logp_grad) + p_log_p_factor * (p * log_p).nan_to_num()
    if target >= 0:
        truth[target] += logp_grad
    torch.testing.assert_close(dz.double(), truth * scale, rtol=32 * EPSILON, atol=1e-7)
