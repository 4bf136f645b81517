"""The build for another architecture: compiled everywhere that has the compiler, run under qemu."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from .build_script import ROOT, SETUP

COMPILER = "aarch64-linux-gnu-g++"
ELF_MACHINE = {"x86_64": 62, "aarch64": 183}
CHOSEN = "test_every_instruction_set and portable and everything"
needs_compiler = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"there is no {COMPILER}; Debian's g++-aarch64-linux-gnu"
)


def machine_of(library: Path) -> int:
    header = library.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    return int.from_bytes(header[18:20], "little")


@needs_compiler
def test_a_cross_compiler_builds_the_portable_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """setup.py asks the compiler, not this machine, which instruction sets there are."""
    monkeypatch.setenv("CXX", COMPILER)
    # torch's libraries here are of this machine's architecture; what they define stays open.
    monkeypatch.setattr(SETUP, "link_flags", list)
    target = tmp_path / "library.so"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SETUP.build_cpu(tmp_path, target)
    assert machine_of(target) == ELF_MACHINE["aarch64"]
    built = target.read_bytes()
    assert b"portable" in built
    assert b"avx" not in built


@needs_compiler
def test_kernels_compile_for_aarch64_without_warnings(tmp_path: Path) -> None:
    flags = [*SETUP.COMMON_FLAGS, "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/csrc/include"]
    for source in (*SETUP.TILE_SOURCES, "csrc/cpu/dispatch.cpp"):
        target = str(tmp_path / "unit.o")
        command = [COMPILER, *flags, "-DRAO_ISA=portable", "-c", str(ROOT / source), "-o", target]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


@needs_compiler
def test_kernels_are_right_on_aarch64() -> None:
    """A part of the contract; `.ci/aarch64` runs all of it, and fetches what this test needs."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("there is no qemu-aarch64; Debian's qemu-user")
    if not (ROOT / "build" / "aarch64" / "site.done").exists():
        pytest.skip("build/aarch64 has no Python and torch for aarch64; .ci/aarch64 fetches them")
    command = [ROOT / ".ci" / "aarch64", "tests/backends/test_contract.py", "-q", "-k", CHOSEN]
    environment = {**os.environ, "PYTHON": sys.executable}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
    assert "skipped" not in result.stdout


def test_operators_have_their_namespace_with_headers_of_torch_2_10(tmp_path: Path) -> None:
    """There, STABLE_TORCH_LIBRARY takes its argument's text, which must not be a macro's name."""
    headers = tmp_path / "torch" / "csrc" / "stable"
    headers.mkdir(parents=True)
    (headers / "library.h").write_text("#define STABLE_TORCH_LIBRARY(ns, m) namespace_is #ns\n")
    (headers / "ops.h").touch()
    flags = [f"-I{tmp_path}", *SETUP.include_flags(), SETUP.TORCH_TARGET, "-DRAO_BIND_DEVICE=CPU"]
    source = str(ROOT / "python_bindings" / "bind_cpu.cpp")
    for given, expected in (([], "rao_native"), (["-DRAO_OPS=other"], "other")):
        text = SETUP.run([SETUP.compiler(), "-std=c++17", "-E", *flags, *given, source])
        assert f'namespace_is "{expected}"' in text
