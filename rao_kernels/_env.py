"""The only reader of environment variables. ENVIRONMENT.md is generated from `VARIABLES`."""

from __future__ import annotations

import os

VARIABLES = {
    "RAO_KERNELS_BACKEND": (
        "Backend to use where no `backend=` is given: `cpu`, `triton`, `cuda` or `eager`."
    ),
    "RAO_KERNELS_CPU_ISA": (
        "Instruction set of the CPU kernels: `avx512_amx`, `avx512_bf16`, `avx512`, `avx2` or "
        "`portable`. Unset: the best the processor has. Read once, when the library is loaded."
    ),
    "RAO_BUILD_CPU": (
        "At build time: `1` fails unless the CPU library compiles, `0` does not compile it. Unset: "
        "it is compiled, and left out if that fails."
    ),
    "RAO_BUILD_CUDA": (
        "At build time: `1` fails unless the CUDA library compiles, `0` does not compile it. "
        "Unset: it is compiled where torch has CUDA, and left out if that fails."
    ),
    "TORCH_CUDA_ARCH_LIST": (
        "At build time: compute capabilities of the CUDA library. Unset: those of `8.0 9.0 10.0` "
        "that nvcc knows, and PTX of the last for later GPUs."
    ),
}


def _read(name: str) -> str | None:
    assert name in VARIABLES
    return os.environ.get(name) or None


def backend() -> str | None:
    """``RAO_KERNELS_BACKEND``, or None."""
    return _read("RAO_KERNELS_BACKEND")


def cpu_isa() -> str | None:
    """``RAO_KERNELS_CPU_ISA``, or None."""
    return _read("RAO_KERNELS_CPU_ISA")
