"""Finds and loads the native library once, and remembers why it is missing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from . import _env
from .errors import BackendError

BUILD_COMMAND = "pip install --no-build-isolation ."
ISAS = ("portable", "avx2", "avx512", "avx512_bf16")  # in the order of csrc's enum Isa
_LIBRARY = Path(__file__).with_name("_native_cpu.so")


@dataclass(frozen=True)
class CpuLibrary:
    """The loaded library.

    host_isas: the instruction sets this processor can run, best first. isa: the one in use.
    """

    path: Path
    host_isas: tuple[str, ...]
    isa: str
    compiler: str


@dataclass(frozen=True)
class Missing:
    """Why there is no library."""

    reason: str


@cache
def cpu_library() -> CpuLibrary | Missing:
    """The library of the CPU kernels, loaded on the first call.

    Raises:
        BackendError: ``RAO_KERNELS_CPU_ISA`` names an instruction set this processor cannot run.
    """
    if not _LIBRARY.exists():
        return Missing(f"its library {_LIBRARY.name} is not built; `{BUILD_COMMAND}` builds it")
    try:
        torch.ops.load_library(_LIBRARY)
    except OSError as error:
        return Missing(f"its library does not load ({error}); `{BUILD_COMMAND}` rebuilds it")
    found = torch.ops.rao_native.host_isas()
    host = tuple(name for bit, name in reversed(list(enumerate(ISAS))) if found >> bit & 1)
    return CpuLibrary(_LIBRARY, host, _choose(host), torch.ops.rao_native.compiler())


def _choose(host: tuple[str, ...]) -> str:
    forced = _env.cpu_isa()
    if forced is None:
        return host[0]
    if forced not in host:
        raise BackendError(
            f"RAO_KERNELS_CPU_ISA={forced}: this processor has {', '.join(host)}; "
            "use one of these, or unset it"
        )
    return forced
