"""`rao-kernels doctor`: what is installed and built, and which backend would run here."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence

import torch

from .. import _env, _native, backends
from ..errors import BackendError

_PACKAGES = (
    "rao-kernels",
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "safetensors",
    "trl",
    "deepspeed",
    "liger-kernel",
    "cut-cross-entropy",
)


def run(argv: Sequence[str]) -> None:
    """Print the facts a bug report needs."""
    argparse.ArgumentParser(prog="rao-kernels doctor", description=__doc__).parse_args(argv)
    for line in report():
        print(line)


def report() -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"python {platform.python_version()} on {platform.platform()}"
    for package in _PACKAGES:
        yield f"{package} {_version(package)}"
    yield f"{torch.get_num_threads()} threads; {_devices()}"
    yield f"CPU library: {_cpu_library()}"
    yield f"CUDA library: {_cuda_library()}"
    for name in _env.VARIABLES:
        yield f"{name}={os.environ.get(name, '')}"
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            yield from _backends(torch.device(device), dtype)


def _backends(device: torch.device, dtype: torch.dtype) -> Iterator[str]:
    head = f"{device.type} {str(dtype).removeprefix('torch.')}:"
    try:
        yield f"{head} runs {backends.select(None, device, dtype)}"
    except BackendError as error:
        yield f"{head} {error}"
    for name, reason in backends.reasons(device, dtype).items():
        if reason is not None:
            yield f"    not {name}: {reason}"


def _cpu_library() -> str:
    library = _native.cpu_library()
    if isinstance(library, _native.Missing):
        return library.reason
    others = ", ".join(library.host_isas)
    if library.amx_problem is not None:
        others += f"; no avx512_amx: {library.amx_problem}"
    return f"{library.path}, built by {library.compiler}, runs {library.isa} (host: {others})"


def _cuda_library() -> str:
    library = _native.cuda_library()
    if isinstance(library, _native.Missing):
        return library.reason
    capabilities = ", ".join(library.capabilities)
    return f"{library.path}, built by {library.compiler} for compute capability {capabilities}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    count = torch.cuda.device_count()
    return ", ".join(torch.cuda.get_device_name(index) for index in range(count))
