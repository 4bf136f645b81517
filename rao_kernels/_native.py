"""Find and load each native library once, remember why one is missing, and call its operators."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from . import _env
from .errors import BackendError

BUILD_COMMAND = "pip install --no-build-isolation ."
# In the order of enum Isa in csrc/include/rao/tile_kernels.h.
ISAS = ("portable", "avx2", "avx512", "avx512_bf16", "avx512_amx")
CUDA_BUILD_COMMAND = f"RAO_BUILD_CUDA=1 {BUILD_COMMAND}"
_LIBRARY = Path(__file__).with_name("_native_cpu.so")
_CUDA_LIBRARY = Path(__file__).with_name("_native_cuda.so")


@dataclass(frozen=True)
class CpuLibrary:
    """The loaded library of the CPU kernels.

    host_isas: the instruction sets this processor can run, best first. isa: the one in use.
    amx_problem: why "avx512_amx" is not among them, or None.
    """

    path: Path
    host_isas: tuple[str, ...]
    isa: str
    compiler: str
    amx_problem: str | None


@dataclass(frozen=True)
class CudaLibrary:
    """The loaded library of the CUDA kernels.

    capabilities: the compute capabilities it was compiled for, as ``"9.0"``.
    """

    path: Path
    compiler: str
    capabilities: tuple[str, ...]


@dataclass(frozen=True)
class Missing:
    """The reason why there is no library."""

    reason: str


@cache
def cpu_library() -> CpuLibrary | Missing:
    """Return the library of the CPU kernels, loaded on the first call.

    Raises:
        BackendError: ``RAO_KERNELS_CPU_ISA`` names an instruction set this processor cannot run.
    """
    if missing := _load(_LIBRARY, BUILD_COMMAND):
        return missing
    operators = torch.ops.rao_native
    if _is_older(operators):
        return Missing(
            f"its library {_LIBRARY.name} is older than its sources; `{BUILD_COMMAND}` rebuilds it"
        )
    found = operators.host_isas()
    host = tuple(name for bit, name in reversed(list(enumerate(ISAS))) if found >> bit & 1)
    problem = operators.amx_problem() or None
    return CpuLibrary(_LIBRARY, host, _choose(host), operators.compiler(), problem)


@cache
def cuda_library() -> CudaLibrary | Missing:
    """Return the library of the CUDA kernels, loaded on the first call; loading needs no CUDA."""
    if missing := _load(_CUDA_LIBRARY, CUDA_BUILD_COMMAND):
        return missing
    *compiler, numbers = torch.ops.rao_native.row_kernels_build().split(" ")
    capabilities = (divmod(int(number) // 10, 10) for number in numbers.split(","))
    return CudaLibrary(
        _CUDA_LIBRARY,
        " ".join(compiler),
        tuple(f"{major}.{minor}" for major, minor in capabilities),
    )


def call(operator: Any, **arguments: object) -> Any:
    """Call a native operator with its arguments by name, as its schema has them.

    torch receives them by position: matching 21 names here takes about 1.7 us a call, in torch
    3.5 us.

    Raises:
        TypeError: an argument is missing, or is not one of the operator's.
    """
    names, in_order = _argument_order(operator)
    if arguments.keys() != names:
        differing = ", ".join(sorted(arguments.keys() ^ names))
        raise TypeError(f"{operator}: missing or unknown arguments: {differing}")
    return operator(*in_order(arguments))


@cache
def _argument_order(operator: Any) -> tuple[frozenset[str], itemgetter[str]]:
    """Return the names of the schema's arguments, and a getter that puts them in its order."""
    names = [argument.name for argument in operator.default._schema.arguments]
    return frozenset(names), itemgetter(*names)


@cache
def cuda_problem(device: int) -> str | None:
    """Return the reason why the library's kernels cannot run on that CUDA device, or None."""
    with torch.cuda.device(device):
        return torch.ops.rao_native.row_kernels_problem() or None


def _load(path: Path, command: str) -> Missing | None:
    """Load a library; return a reason, with the command that builds it, if that fails."""
    if not path.exists():
        return Missing(f"its library {path.name} is not built; `{command}` builds it")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return Missing(f"its library does not load ({error}); `{command}` rebuilds it")
    return None


def _is_older(operators: Any) -> bool:
    """Return True if the library was built from earlier sources, with other arguments."""
    if not hasattr(operators, "score_tile"):
        return True
    names, _ = _argument_order(operators.score_tile)
    return "first_entry" not in names


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
