"""The `cuda` backend on a CPU: csrc/cuda compiled with the headers of cuda_on_cpu.

The threads of a block take turns, in random order. Kernels, launchers and the binding run
unchanged; only nvcc and the GPU are replaced. A misaligned access ends the process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from rao_kernels import _native
from rao_kernels.backends import cuda

from .build_script import SETUP

HEADERS = Path(__file__).parent / "cuda_on_cpu"
FLAGS = ["-O2", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas", f"-I{HEADERS}", "-x", "c++"]
ALIGNED = ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]


@cache
def load() -> None:
    """Compile and load the library, with its ops registered for CPU tensors."""
    if not isinstance(_native.cuda_library(), _native.Missing):
        pytest.skip("the real library of the CUDA kernels is loaded")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        sources = [*SETUP.CUDA_SOURCES, SETUP.CUDA_BINDING]
        objects = [Path(folder) / f"{Path(source).stem}.o" for source in sources]
        binding = [*FLAGS, SETUP.TORCH_TARGET, "-DRAO_BIND_DEVICE=CPU"]
        flags = [*([*FLAGS, *ALIGNED] for _ in SETUP.CUDA_SOURCES), binding]
        units = zip(sources, objects, flags, strict=True)
        jobs = [pool.submit(SETUP.compile_cpp, *unit) for unit in units]
        for job in jobs:
            job.result()
        library = str(Path(folder) / "emulated.so")
        SETUP.run([SETUP.compiler(), "-shared", *map(str, objects), *SETUP.link_flags(),
                   "-o", library])  # fmt: skip
        torch.ops.load_library(library)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the backend accept CPU tensors."""
    load()

    def supports(device: torch.device, dtype: torch.dtype) -> str | None:
        return None if dtype in cuda.DTYPES else f"it computes in {cuda.DTYPES}, not {dtype}"

    @contextmanager
    def current_stream(device: torch.device) -> Iterator[int]:
        yield 0

    monkeypatch.setattr(cuda, "supports", supports)
    monkeypatch.setattr(cuda, "_current_stream", current_stream)
