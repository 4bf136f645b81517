"""Fixtures that force an instruction set of the CPU library."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rao_kernels import _native


@pytest.fixture
def fresh_library() -> Iterator[None]:
    """The library is looked for again inside the test, and after it."""
    _native.cpu_library.cache_clear()
    yield
    _native.cpu_library.cache_clear()


@pytest.fixture(params=_native.ISAS)
def isa(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fresh_library: None
) -> str:
    """Each instruction set this processor has, forced by the environment."""
    library = _native.cpu_library()
    if isinstance(library, _native.Missing):
        pytest.skip(library.reason)
    if request.param not in library.host_isas:
        pytest.skip(f"this processor has {', '.join(library.host_isas)}, not {request.param}")
    monkeypatch.setenv("RAO_KERNELS_CPU_ISA", request.param)
    _native.cpu_library.cache_clear()
    return str(request.param)
