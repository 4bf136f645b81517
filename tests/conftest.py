"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rao_kernels import _memory

from . import seeds

# Without a GPU Triton's kernels run under its interpreter, which they ask for as they are defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=0, metavar="N", help="other random numbers for each N"
    )


def pytest_configure(config: pytest.Config) -> None:
    os.environ[seeds.VARIABLE] = str(config.getoption("seed"))


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend that a test's parameter names; "cpu-amx" is `cpu` on emulated AMX tiles."""
    name, _, form = str(request.param).partition("-")
    if form == "amx":
        from .backends import amx_emulation

        amx_emulation.install(monkeypatch)
    return name


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` beside the project: real data and weights that are not part of it."""
    if not SHARED.is_dir():
        pytest.skip("the folder `shared` with real data and weights is not beside the project")
    return SHARED


@pytest.fixture(autouse=True)
def seeded() -> None:
    seeds.seed_torch()


@pytest.fixture
def nan_filled_memory() -> Iterator[None]:
    """Uninitialised memory holds NaN inside the test."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The length of every new mapping, from 64 KiB on; the pool is empty before and after."""
    lengths: list[int] = []
    new = _memory._map

    def recorded(nbytes: int) -> object:
        lengths.append(nbytes)
        return new(nbytes)

    monkeypatch.setattr(_memory, "THRESHOLD", 64 << 10)
    monkeypatch.setattr(_memory, "_map", recorded)
    _memory.release_memory()
    yield lengths
    _memory.release_memory()
