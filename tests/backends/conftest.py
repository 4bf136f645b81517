"""Fixtures that force a backend's form, or an instruction set of the CPU library."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rao_kernels import _native
from rao_kernels.backends.triton import tuning

from . import amx_emulation, emulation

FORMS = ("fused", "unfused")
EMULATED_AMX = "avx512_amx-emulated"
VARIANTS = ("cpu", "eager", "cuda-emulated", *(f"triton-{form}-interpret" for form in FORMS))


@pytest.fixture(params=VARIANTS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of each variant's backend, with its form forced."""
    name, *form = request.param.split("-")
    if form == ["emulated"]:
        emulation.install(monkeypatch)
    elif form:
        monkeypatch.setattr(tuning, "is_fused", lambda *_: form[0] == "fused")
    return str(name)


@pytest.fixture
def narrow_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of few rows are not widened: a call has several, as one of many rows has."""
    monkeypatch.setattr("rao_kernels.engine.plan.WIDENED_LOGITS", 0)


@pytest.fixture
def fresh_library() -> Iterator[None]:
    """Search for the library again inside the test, and after it."""
    _native.cpu_library.cache_clear()
    yield
    _native.cpu_library.cache_clear()


@pytest.fixture(params=[*_native.ISAS, EMULATED_AMX])
def isa(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fresh_library: None
) -> str:
    """Each instruction set of this processor, forced by the environment; AMX also emulated."""
    library = _native.cpu_library()
    if isinstance(library, _native.Missing):
        pytest.skip(library.reason)
    if request.param == EMULATED_AMX:
        amx_emulation.install(monkeypatch)
        return "avx512_amx"
    if request.param not in library.host_isas:
        pytest.skip(f"this processor has {', '.join(library.host_isas)}, not {request.param}")
    monkeypatch.setenv("RAO_KERNELS_CPU_ISA", request.param)
    _native.cpu_library.cache_clear()
    return str(request.param)


@pytest.fixture(params=["emulated", "hardware"])
def amx(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fresh_library: None
) -> str:
    """The `cpu` backend on AMX tiles: emulated, and the processor's."""
    if request.param == "emulated":
        amx_emulation.install(monkeypatch)
    else:
        amx_emulation.require_hardware()
        monkeypatch.setenv("RAO_KERNELS_CPU_ISA", "avx512_amx")
        _native.cpu_library.cache_clear()
    return str(request.param)
