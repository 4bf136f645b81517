"""Builds the two optional native libraries; everything else is in pyproject.toml.

``RAO_BUILD_CPU``, ``RAO_BUILD_CUDA``: unset = built if it can be, with a warning that says why it
was not; 1 = must succeed; 0 = skipped. Unset, the CUDA library is built only where torch has CUDA.
Both use torch's stable ABI and no Python symbol, so that one file serves every Python and
every torch from 2.10 on; neither is linked to libtorch_cuda or to a CUDA driver.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    sys.exit("rao_kernels needs setuptools 77 or newer to build: pip install -U setuptools wheel")

ROOT = Path(__file__).parent
CPU_LIBRARY = "rao_kernels._native_cpu"
CUDA_LIBRARY = "rao_kernels._native_cuda"
SWITCHES = {CPU_LIBRARY: "RAO_BUILD_CPU", CUDA_LIBRARY: "RAO_BUILD_CUDA"}
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # 2.10
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
AVX512_BF16 = [*AVX512, "-mavx512bf16"]
ISA_FLAGS: dict[str, list[str]] = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512_bf16": AVX512_BF16,
}
TILE_SOURCES = ["csrc/cpu/score_tile.cpp", "csrc/cpu/grad_tile.cpp"]
AMX_FLAGS = [*AVX512_BF16, "-mamx-tile", "-mamx-bf16", "-DRAO_ISA=avx512_amx"]
AMX_SOURCES = ["csrc/cpu/amx/score_tile.cpp", "csrc/cpu/amx/grad_tile.cpp"]
CPU_SOURCES = ["csrc/cpu/dispatch.cpp", "python_bindings/bind_cpu.cpp"]
CUDA_SOURCES = ["csrc/cuda/score_tile.cu", "csrc/cuda/grad_tile.cu"]
CUDA_BINDING = "python_bindings/bind_cuda.cpp"
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden"]
ARCHITECTURES = "8.0 9.0 10.0+PTX"


class SkipBuild(Exception):
    """Carries the reason for which a library is not built."""


def torch_paths() -> tuple[list[str], str]:
    """Return the include folders and the library folder of the torch to build against."""
    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        raise SkipBuild(
            f"torch is not importable while building ({error}); "
            "use `pip install --no-build-isolation .` in an environment that has it"
        ) from None
    return cpp_extension.include_paths(), cpp_extension.TORCH_LIB_PATH


def torch_has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.version.cuda is not None


def compiler() -> str:
    return os.environ.get("CXX", "c++")


def include_flags() -> list[str]:
    return [f"-I{ROOT / folder}" for folder in INCLUDES] + [
        f"-isystem{i}" for i in torch_paths()[0]
    ]


def link_flags() -> list[str]:
    return [f"-L{torch_paths()[1]}", "-ltorch", "-ltorch_cpu", "-lc10"]


def compile_cpp(source: str, target: Path, flags: list[str]) -> None:
    run([compiler(), *COMMON_FLAGS, *flags, *include_flags(), "-c", str(ROOT / source),
         "-o", str(target)])  # fmt: skip


def targets_x86() -> bool:
    """Return True if the compiler makes x86-64 code, on whatever machine it runs."""
    return run([compiler(), "-dumpmachine"]).startswith("x86_64")


def accepts(flags: list[str]) -> bool:
    """Return True if the compiler knows the flags."""
    command = [compiler(), *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


def build_cpu(objects: Path, target: Path) -> None:
    """Build the CPU library: each tile source once for each instruction set, with its flags."""
    x86 = targets_x86()
    isas = ISA_FLAGS if x86 else {"portable": []}
    units = [
        (source, [*flags, f"-DRAO_ISA={isa}"])
        for isa, flags in isas.items()
        for source in TILE_SOURCES
    ]
    base = [TORCH_TARGET, "-DRAO_BIND_DEVICE=CPU"]
    if x86 and accepts(AMX_FLAGS):
        units += [(source, AMX_FLAGS) for source in AMX_SOURCES]
        base.append("-DRAO_HAS_AMX")
    elif x86:
        warnings.warn(f"{compiler()} does not know AMX (g++ 11 and clang++ 12 do)", stacklevel=1)
    link_cpp([*units, *((source, base) for source in CPU_SOURCES)], objects, target)


def link_cpp(units: list[tuple[str, list[str]]], objects: Path, target: Path) -> None:
    """Compile each source with its flags, and link them into one library."""
    files = [objects / f"{number}_{Path(unit[0]).stem}.o" for number, unit in enumerate(units)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(compile_cpp, source, file, flags)
            for (source, flags), file in zip(units, files, strict=True)
        ]
        for job in jobs:
            job.result()
    run([compiler(), "-shared", *map(str, files), *link_flags(), "-o", str(target)])


def find_nvcc() -> str:
    """Return ``CUDA_HOME``'s nvcc, else that of the package nvidia-cuda-nvcc, else the path's."""
    candidates = [Path(home) / "bin" / "nvcc" for home in (os.environ.get("CUDA_HOME"),) if home]
    package = importlib.util.find_spec("nvidia")
    for folder in (package and package.submodule_search_locations) or ():
        candidates += sorted(Path(folder).glob("cu*/bin/nvcc"), reverse=True)
    if on_path := shutil.which("nvcc"):
        candidates.append(Path(on_path))
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return str(candidate)
    raise SkipBuild(
        "there is no nvcc; set CUDA_HOME, put it on the path, or install nvidia-cuda-nvcc and "
        "nvidia-cuda-cccl from PyPI"
    )


def known_architectures(nvcc: str) -> list[str]:
    """Return those of the default that nvcc knows, the last with PTX."""
    known = run([nvcc, "--list-gpu-arch"]).split()
    names = ARCHITECTURES.removesuffix("+PTX").split()
    names = [name for name in names if f"compute_{name.replace('.', '')}" in known]
    if not names:
        raise SkipBuild(f"{nvcc} knows none of the architectures {ARCHITECTURES}")
    return [*names[:-1], f"{names[-1]}+PTX"]


def architecture_flags(nvcc: str) -> list[str]:
    """Return nvcc's flags for ``TORCH_CUDA_ARCH_LIST``, else for what it knows of the default.

    ``+PTX``: code that later GPUs compile for themselves, of the last architecture by default.
    """
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    flags = []
    for name in re.split(r"[\s;,]+", asked.strip()) if asked else known_architectures(nvcc):
        parts = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", name)
        if parts is None:
            raise SkipBuild(f"TORCH_CUDA_ARCH_LIST: {name!r} is not like '9.0' or '9.0+PTX'")
        number = parts[1] + parts[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if parts[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def compile_cuda(nvcc: str, source: str, target: Path, flags: list[str]) -> str:
    """Compile a CUDA source and return what nvcc printed."""
    host = [f"-ccbin={os.environ['CXX']}"] if "CXX" in os.environ else []
    return run([nvcc, *host, *NVCC_FLAGS, *flags, f"-I{ROOT / 'csrc/include'}",
                str(ROOT / source), "-o", str(target)])  # fmt: skip


def build_cuda(objects: Path, target: Path) -> None:
    nvcc = find_nvcc()
    binding = objects / "bind_cuda.o"
    compile_cpp(CUDA_BINDING, binding, [TORCH_TARGET, "-DRAO_BIND_DEVICE=CUDA"])
    flags = ["-c", *architecture_flags(nvcc), "--threads=0"]
    files = [objects / f"{Path(source).stem}_cuda.o" for source in CUDA_SOURCES]
    for source, file in zip(CUDA_SOURCES, files, strict=True):
        compile_cuda(nvcc, source, file, flags)
    # The package from PyPI keeps its libraries where its own nvcc does not look.
    libraries = [f"-L{Path(nvcc).parents[1] / 'lib'}", *link_flags()]
    run([nvcc, "-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL", str(binding),
         *map(str, files), *libraries, "-o", str(target)])  # fmt: skip


class BuildNative(build_ext):
    """Builds each library by itself, so that one that fails does not prevent the other."""

    def build_extensions(self) -> None:
        self.extensions = [ext for ext in self.extensions if self.attempt(ext)]

    def attempt(self, ext: Extension) -> bool:
        switch = os.environ.get(SWITCHES[ext.name], "")
        if switch == "0" or (switch == "" and ext.name == CUDA_LIBRARY and not torch_has_cuda()):
            return False
        try:
            self.build_extension(ext)
        except Exception as error:
            if switch == "1":
                raise
            warnings.warn(
                f"{ext.name} was not built: {error}. The package works without it, only slower.",
                stacklevel=1,
            )
            return False
        return True

    def build_extension(self, ext: Extension) -> None:
        if platform.system() == "Windows":
            raise SkipBuild("the kernels need g++ or clang++")
        objects, target = Path(self.build_temp), Path(self.get_ext_fullpath(ext.name))
        for folder in (objects, target.parent):
            folder.mkdir(parents=True, exist_ok=True)
        build = build_cpu if ext.name == CPU_LIBRARY else build_cuda
        build(objects, target)

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"


class PlatformWheel(bdist_wheel):
    """Tags the wheel for every Python 3: the libraries use no symbol of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def run(command: list[str]) -> str:
    """Run a command and return what it printed."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SkipBuild(f"`{' '.join(command)}` failed:\n{result.stderr}{result.stdout}")
    sys.stderr.write(result.stderr)
    return result.stdout + result.stderr


if __name__ == "__main__":
    setup(
        packages=find_packages(include=["rao_kernels", "rao_kernels.*"]),
        ext_modules=[
            Extension(CPU_LIBRARY, [*TILE_SOURCES, *AMX_SOURCES, *CPU_SOURCES]),
            Extension(CUDA_LIBRARY, [*CUDA_SOURCES, CUDA_BINDING]),
        ],
        cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
    )
