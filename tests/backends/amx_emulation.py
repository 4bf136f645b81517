"""The AMX kernels on a processor without AMX: csrc/cpu/amx compiled with tile_emulation.h.

The library is separate, with the real one's operators in another namespace. Emulated tiles give the
hardware's bits; vector work uses AVX-512 where the processor has it.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch

from rao_kernels import _native
from rao_kernels.backends import cpu

from .build_script import SETUP

NAMESPACE = "rao_native_emulated"
EMULATED = "-DRAO_TILES_EMULATED"
GENERIC = ["-Og", "-Wno-psabi", *(["-mfma"] if SETUP.accepts(["-mfma"]) else [])]


BUILDS = ("avx512", "generic")  # the instructions of vector work


@cache
def host_build() -> str:
    """Return the fastest build that this processor runs."""
    library = _native.cpu_library()
    if isinstance(library, _native.Missing):
        pytest.skip(library.reason)
    return "avx512" if "avx512_bf16" in library.host_isas else "generic"


def flags_of(build: str) -> list[str]:
    """Return a build's compiler flags; skip the test where the processor cannot run it."""
    if build == "generic":
        return GENERIC
    if host_build() != "avx512":
        pytest.skip("this processor has no AVX-512 BF16")
    return ["-O2", *SETUP.AVX512_BF16]


@cache
def load(build: str) -> _native.CpuLibrary:
    """Compile and load the library."""
    amx_flags = [*flags_of(build), EMULATED, "-DRAO_ISA=avx512_amx"]
    return load_units(f"{NAMESPACE}_{build}", [(source, amx_flags) for source in SETUP.AMX_SOURCES])


def load_units(namespace: str, amx_units: list[tuple[str, list[str]]]) -> _native.CpuLibrary:
    """Build and load a library of AMX sources, each with its flags, and of all that they need."""
    base = [EMULATED, "-DRAO_HAS_AMX"]  # AMX is available on any processor
    base += [SETUP.TORCH_TARGET, "-DRAO_BIND_DEVICE=CPU", f"-DRAO_OPS={namespace}"]
    units = [
        *amx_units,
        *((source, ["-DRAO_ISA=portable"]) for source in SETUP.TILE_SOURCES),
        *((source, base) for source in SETUP.CPU_SOURCES),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{namespace}.so"
        SETUP.link_cpp(units, Path(folder), path)
        torch.ops.load_library(path)
    return _native.CpuLibrary(path, ("avx512_amx", "portable"), "avx512_amx", "emulated", None)


def require_hardware() -> None:
    """Skip the test where the processor has no AMX."""
    library = _native.cpu_library()
    if isinstance(library, _native.Missing):
        pytest.skip(library.reason)
    if library.amx_problem is not None:
        pytest.skip(f"no AMX: {library.amx_problem}")


def install(monkeypatch: pytest.MonkeyPatch, build: str | None = None) -> None:
    """Make the `cpu` backend run the emulated kernels."""
    fastest = host_build()  # asked while the real library is in place
    build = build or fastest
    use(monkeypatch, load(build), f"{NAMESPACE}_{build}")


def use(monkeypatch: pytest.MonkeyPatch, library: _native.CpuLibrary, namespace: str) -> None:
    """Make the `cpu` backend run a library whose operators are in another namespace."""
    operators = getattr(torch.ops, namespace)
    monkeypatch.setattr(_native, "cpu_library", cache(lambda: library))
    monkeypatch.setattr(cpu, "_operators", lambda: operators)
