"""Building, loading and refusing the library of the CUDA kernels, without a GPU."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from setuptools import Distribution

from rao_kernels import _native
from rao_kernels.backends import cuda

from .build_script import SETUP, nvcc

PROGRAM = """
import sys, torch
from pathlib import Path
from rao_kernels import _native
_native._CUDA_LIBRARY = Path(sys.argv[1])
library = _native.cuda_library()
print(library.compiler, *library.capabilities)
print(torch.ops.rao_native.row_kernels_problem())
row = torch.zeros(2)
try:
    torch.ops.rao_native.score_rows(torch.zeros(2, 8), None, row.long(), 0, 8, 1.0, 0.0, row, row,
                                    row, None, None, None, True, None, None, 0)
except NotImplementedError as error:
    print("CPU" in str(error))
"""


@pytest.fixture
def fresh_library() -> Iterator[None]:
    _native.cuda_library.cache_clear()
    yield
    _native.cuda_library.cache_clear()


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise SETUP.SkipBuild("there is no nvcc")

    monkeypatch.setattr(SETUP, "find_nvcc", missing)


def attempt(folder: Path) -> bool:
    """Return True if the CUDA library was built."""
    command = SETUP.BuildNative(Distribution())
    command.build_temp = command.build_lib = str(folder)
    command.ensure_finalized()
    return bool(command.attempt(SETUP.Extension(SETUP.CUDA_LIBRARY, [])))


def test_builds_and_loads_beside_a_torch_without_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setenv("CUDA_HOME", str(Path(nvcc()).parents[1]))
    library = tmp_path / "_native_cuda.so"
    SETUP.build_cuda(tmp_path, library)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, library], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    about, problem, refused = done.stdout.splitlines()
    assert about.startswith("nvcc ") and about.endswith(" 9.0")
    assert refused == "True"
    if not torch.cuda.is_available():
        assert problem


def test_a_missing_library_is_a_reason_that_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, fresh_library: None, tmp_path: Path
) -> None:
    monkeypatch.setattr(_native, "_CUDA_LIBRARY", tmp_path / "_native_cuda.so")
    missing = _native.cuda_library()
    assert isinstance(missing, _native.Missing)
    assert _native.CUDA_BUILD_COMMAND in missing.reason and "RAO_BUILD_CUDA=1" in missing.reason


def test_a_broken_library_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, fresh_library: None, tmp_path: Path
) -> None:
    (tmp_path / "_native_cuda.so").write_bytes(b"not a library")
    monkeypatch.setattr(_native, "_CUDA_LIBRARY", tmp_path / "_native_cuda.so")
    missing = _native.cuda_library()
    assert isinstance(missing, _native.Missing) and "does not load" in missing.reason


def test_a_cpu_is_refused() -> None:
    reason = cuda.supports(torch.device("cpu"), torch.bfloat16)
    assert reason == "it runs on an NVIDIA GPU, not on cpu"


@pytest.mark.parametrize(
    ("asked", "flags"),
    [
        ("9.0", ["-gencode=arch=compute_90,code=sm_90"]),
        ("8.0;9.0a", [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ("80", "90a")]),
        ("10.0+PTX", [f"-gencode=arch=compute_100,code={c}" for c in ("sm_100", "compute_100")]),
    ],
)
def test_architectures(asked: str, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert SETUP.architecture_flags("nvcc") == flags


def test_of_the_default_architectures_those_the_compiler_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(SETUP, "run", lambda _: "compute_80\ncompute_90\n")
    found = SETUP.architecture_flags("nvcc")
    machine_code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ("80", "90")]
    assert found == [*machine_code, "-gencode=arch=compute_90,code=compute_90"]


def test_later_gpus_can_compile_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    found = SETUP.architecture_flags(nvcc())
    assert found[-1] == "-gencode=arch=compute_100,code=compute_100"


def test_a_compiler_that_knows_no_architecture_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(SETUP, "run", lambda _: "compute_50\n")
    with pytest.raises(SETUP.SkipBuild, match="old/nvcc knows none of the architectures 8.0"):
        SETUP.architecture_flags("old/nvcc")


def test_an_invalid_architecture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(SETUP.SkipBuild, match="'Hopper' is not like '9\\.0'"):
        SETUP.architecture_flags("nvcc")


def test_the_compiler_of_cuda_home_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    mine = tmp_path / "bin" / "nvcc"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert SETUP.find_nvcc() == str(mine)


@pytest.mark.usefixtures("no_nvcc")
def test_a_library_that_must_be_built_fails_where_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAO_BUILD_CUDA", "1")
    with pytest.raises(SETUP.SkipBuild, match="there is no nvcc"):
        attempt(tmp_path)


@pytest.mark.usefixtures("no_nvcc")
def test_best_effort_beside_a_torch_with_cuda_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAO_BUILD_CUDA", raising=False)
    monkeypatch.setattr(SETUP, "torch_has_cuda", lambda: True)
    with pytest.warns(UserWarning, match="_native_cuda was not built: there is no nvcc"):
        assert not attempt(tmp_path)


@pytest.mark.parametrize(("switch", "has_cuda"), [("0", True), ("", False)])
def test_skipped_without_a_warning(
    switch: str, has_cuda: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAO_BUILD_CUDA", switch)
    monkeypatch.setattr(SETUP, "torch_has_cuda", lambda: has_cuda)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not attempt(tmp_path)
