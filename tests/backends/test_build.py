"""setup.py with a compiler that does not know AMX."""

from __future__ import annotations

import platform
import warnings
from pathlib import Path

import pytest

from rao_kernels import _native

from .build_script import ROOT, SETUP

X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.fixture
def old_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler, without its options of AMX."""
    script = tmp_path / "old-c++"
    refuses = 'case "$*" in *-mamx-*) echo "unknown option" >&2; exit 1;; esac'
    script.write_text(f'#!/bin/sh\n{refuses}\nexec {SETUP.compiler()} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


@pytest.mark.usefixtures("old_compiler")
def test_a_compiler_without_amx_builds_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked: list[str] = []

    def link(units: list[tuple[str, list[str]]], objects: Path, target: Path) -> None:
        linked.extend(" ".join([source, *flags]) for source, flags in units)

    monkeypatch.setattr(SETUP, "link_cpp", link)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SETUP.build_cpu(tmp_path, tmp_path / "library.so")
    assert any("AMX" in str(warning.message) for warning in caught) == X86
    isas = [isa for isa in _native.ISAS if isa != "avx512_amx"] if X86 else ["portable"]
    assert all(any(unit.endswith(f"-DRAO_ISA={isa}") for unit in linked) for isa in isas)
    assert not any("amx" in unit.lower() for unit in linked)


@pytest.mark.parametrize("built", [False, True], ids=["without", "with"])
def test_a_library_says_why_amx_is_not_used(tmp_path: Path, built: bool) -> None:
    """dispatch.cpp alone, with its kernels left unresolved."""
    library = _native.cpu_library()
    if isinstance(library, _native.Missing):
        pytest.skip(library.reason)
    program = tmp_path / "program.cpp"
    program.write_text(
        f'#include "{ROOT}/csrc/cpu/dispatch.cpp"\n#include <cstdio>\n'
        'int main() { const char* p = rao::amx_problem(); std::printf(p ? p : ""); }\n'
    )
    flags = ["-DRAO_HAS_AMX"] if built else []
    flags += ["-std=c++17", "-w", f"-I{ROOT}/csrc/include", "-Wl,--unresolved-symbols=ignore-all"]
    SETUP.run([SETUP.compiler(), *flags, str(program), "-o", str(tmp_path / "program")])
    said = SETUP.run([str(tmp_path / "program")])
    assert ("built without AMX" in said) == (not built)
    if built and "built without AMX" not in (library.amx_problem or ""):
        assert said == (library.amx_problem or "")
