"""Builds the optional native library; everything else is in pyproject.toml.

``RAO_BUILD_CPU``: unset = built if it can be, with a warning that says why it was not; 1 = must
succeed; 0 = skipped. The library uses torch's stable ABI and no Python symbol, so one file serves
every Python and every torch from 2.10 on.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    sys.exit("rao_kernels needs setuptools 77 or newer to build: pip install -U setuptools wheel")

ROOT = Path(__file__).parent
SWITCH = "RAO_BUILD_CPU"
LIBRARY = "rao_kernels._native_cpu"
TORCH_TARGET = "0x020a000000000000"  # 2.10
INCLUDES = ["csrc/include", "python_bindings"]
COMMON_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
ISA_FLAGS: dict[str, list[str]] = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "-mavx512bf16"],
}
TILE_SOURCES = ["csrc/cpu/score_tile.cpp", "csrc/cpu/grad_tile.cpp"]
BASE_SOURCES = ["csrc/cpu/dispatch.cpp", "python_bindings/bind_cpu.cpp"]


class SkipBuild(Exception):
    """Why the library is not built."""


def torch_paths() -> tuple[list[str], str]:
    """Include folders and library folder of the torch to build against."""
    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        raise SkipBuild(
            f"torch is not importable while building ({error}); "
            "use `pip install --no-build-isolation .` in an environment that has it"
        ) from None
    return cpp_extension.include_paths(), cpp_extension.TORCH_LIB_PATH


def compilations() -> list[tuple[str, str, list[str]]]:
    """(source, object name, flags) of every translation unit."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    isas = ISA_FLAGS if x86 else {"portable": []}
    units = [
        (source, f"{Path(source).stem}_{isa}.o", [*flags, f"-DRAO_ISA={isa}"])
        for isa, flags in isas.items()
        for source in TILE_SOURCES
    ]
    target = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    return units + [(source, f"{Path(source).stem}.o", target) for source in BASE_SOURCES]


class BuildNative(build_ext):
    """Compiles one body several times with different flags, which `Extension` cannot say."""

    def run(self) -> None:
        switch = os.environ.get(SWITCH, "")
        if switch == "0":
            return
        try:
            super().run()
        except Exception as error:
            if switch == "1":
                raise
            warnings.warn(
                f"the CPU library of rao_kernels was not built: {error}. "
                "The package works without it, only slower.",
                stacklevel=1,
            )

    def build_extension(self, ext: Extension) -> None:
        if platform.system() == "Windows":
            raise SkipBuild("the kernels need g++ or clang++")
        includes, libraries = torch_paths()
        objects = Path(self.build_temp)
        objects.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CXX", "c++")
        folders = [f"-I{ROOT / folder}" for folder in INCLUDES] + [f"-isystem{i}" for i in includes]

        def compile_unit(unit: tuple[str, str, list[str]]) -> str:
            source, name, flags = unit
            command = [compiler, *COMMON_FLAGS, *flags, *folders, "-c", str(ROOT / source)]
            run([*command, "-o", str(objects / name)])
            return str(objects / name)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            files = list(pool.map(compile_unit, compilations()))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        run([compiler, "-shared", *files, f"-L{libraries}", "-ltorch", "-ltorch_cpu", "-lc10",
             "-o", str(target)])  # fmt: skip

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"


class PlatformWheel(bdist_wheel):
    """Tagged for every Python 3: the library has no Python symbol."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SkipBuild(f"`{' '.join(command)}` failed:\n{result.stderr}")
    sys.stderr.write(result.stderr)


setup(
    ext_modules=[Extension(LIBRARY, [*TILE_SOURCES, *BASE_SOURCES])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
