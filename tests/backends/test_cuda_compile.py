"""Registers and memory accesses of every CUDA source for every target, without a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from .build_script import ROOT, SETUP, nvcc

TARGETS = ("sm_80", "sm_90", "sm_100")
# dtypes x with and without a retained tile x two flags; without one, the dtype does not matter.
KERNELS = {"score_tile": (3 + 1) * 2 * 2, "grad_tile": 3 * 2 * 2 * 2}
REGISTERS = 64  # four blocks of 256 threads on a multiprocessor


@dataclass(frozen=True)
class Kernel:
    """The machine code of one kernel: labels and instructions."""

    name: str
    lines: list[str]

    @property
    def loops(self) -> list[list[str]]:
        """Instructions from a label to a branch back to it."""
        # Code behind the end is for diverged warps.
        lines = list(takewhile(lambda line: not line.startswith("EXIT"), self.lines))
        labels = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
        found = []
        for i, line in enumerate(lines):
            target = re.search(r"BRA.*\((\.L_x_\d+)\)", line)
            if target is not None and labels.get(target[1], i) < i:
                found.append(lines[labels[target[1]] : i])
        return found

    @property
    def main_loop(self) -> list[str]:
        """The loop over a row: the one that loads and takes exponentials."""
        working = [loop for loop in self.loops if count(r"MUFU\.EX2", loop) and count("LDG", loop)]
        assert len(working) == 1, self.name
        return working[0]


def count(instruction: str, lines: list[str]) -> int:
    return sum(re.search(rf"\b{instruction}\b", line) is not None for line in lines)


def disassembler() -> str:
    """Return nvdisasm, which is part of Triton's package."""
    triton = find_spec("triton")
    folders = (
        [] if triton is None else [f"{triton.submodule_search_locations[0]}/backends/nvidia/bin"]
    )
    found = shutil.which("nvdisasm", path=os.pathsep.join([*folders, os.environ["PATH"]]))
    if found is None:
        reason = "there is no nvdisasm; triton's package brings one"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def kernels_of(cubin: Path) -> list[Kernel]:
    code = subprocess.run(
        [disassembler(), "-c", cubin], check=True, capture_output=True, text=True
    ).stdout
    kernels = []
    for section in re.split(r"^\.text\.", code, flags=re.MULTILINE)[1:]:
        name, _, body = section.partition(":")
        lines = [re.sub(r"/\*.*?\*/", "", line).strip() for line in body.splitlines()]
        kernels.append(Kernel(name, [line for line in lines if line]))
    return kernels


def test_the_targets_are_those_that_ship() -> None:
    numbers = SETUP.ARCHITECTURES.removesuffix("+PTX").replace(".", "").split()
    assert tuple(f"sm_{number}" for number in numbers) == TARGETS


@cache
def compiled(source: Path, target: str) -> tuple[str, list[Kernel]]:
    """Return what the compiler reports of a source, and its kernels."""
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "code.cubin"
        flags = [f"-arch={target}", "-cubin", "-Xptxas=-v"]
        report = SETUP.compile_cuda(nvcc(), str(source), cubin, flags)
        return report, kernels_of(cubin)


def source(stem: str) -> Path:
    return ROOT / f"csrc/cuda/{stem}.cu"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stem", KERNELS)
def test_no_spills_and_loads_of_16_bytes(stem: str, target: str) -> None:
    report, kernels = compiled(source(stem), target)
    usage = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", report)
    assert usage == [("0", "0", "0")] * KERNELS[stem]
    assert all(int(used) <= REGISTERS for used in re.findall(r"Used (\d+) registers", report))
    assert len(kernels) == KERNELS[stem]
    for kernel in kernels:
        assert count(r"(LDL|STL)\S*", kernel.lines) == 0, kernel.name
        loop = kernel.main_loop
        from_products = "RetainedRow" not in kernel.name
        wide = 4 if from_products or "RetainedRowIf" in kernel.name else 2
        assert count(r"LDG\.E\.128\S*", loop) == wide, kernel.name
        if "Lb1EEEv" in kernel.name:  # kPlain: no bias; the groups' maxima remain
            assert count(r"LDG\.E(?!\.128)\S*", loop) <= 2, kernel.name
        assert count(r"STG\.E\.(8|16|U8|U16|64)\S*", loop) == 0, kernel.name


# The machine code of an exponential begins with this, on its argument.
EXPONENTIAL = r"FFMA\.SAT (R\d+), (R\d+),"


def arguments_of_exponentials(kernel: Kernel) -> list[str]:
    """Return the instruction that writes the argument of each exponential of the main loop."""
    found = []
    loop = kernel.main_loop
    for i, line in enumerate(loop):
        if taken := re.search(EXPONENTIAL, line):
            writes = re.compile(rf"\b([A-Z]\S*) {taken[2]},")
            written = (writes.search(earlier) for earlier in reversed(loop[:i]))
            found.append(next(match[1] for match in written if match))
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_logits_are_rounded_before_the_maximum_is_subtracted(target: str) -> None:
    """Contracted to one fused multiply-add, ``z - max`` of the maximum would not be 0."""
    _, kernels = compiled(source("score_tile"), target)
    for kernel in kernels:
        arguments = arguments_of_exponentials(kernel)
        assert arguments.count("FADD") >= 16, kernel.name
        assert "FFMA" not in arguments, kernel.name


def test_a_contraction_would_be_seen(tmp_path: Path) -> None:
    contracted = tmp_path / "contracted.cu"
    contracted.write_text(
        "__global__ void contracted(float* x, float scale, float max, int n) {\n"
        "#pragma unroll 1\n"
        "for (int i = threadIdx.x; i < n; i += 32) x[i] = expf(x[i] * scale - max); }"
    )
    _, (kernel,) = compiled(contracted, "sm_90")
    assert set(arguments_of_exponentials(kernel)) == {"FFMA"}


@pytest.mark.parametrize("stem", KERNELS)
def test_logits_are_products_that_nothing_is_contracted_with(stem: str, tmp_path: Path) -> None:
    """Whatever a compiler of machine code does: PTX's ``mul.rn`` is never fused.

    Retained logits are multiplied no more.
    """
    ptx = tmp_path / "code.ptx"
    SETUP.compile_cuda(nvcc(), str(source(stem)), ptx, ["-arch=compute_100", "-ptx"])
    kernels = re.split(r"\.entry ", ptx.read_text())[1:]
    assert len(kernels) == KERNELS[stem]
    for kernel in kernels:
        retained = "RetainedRow" in kernel.split("(")[0]
        assert (kernel.count("mul.rn.f32") >= 16) != retained


def test_every_source_is_compiled() -> None:
    assert {path.stem for path in ROOT.glob("csrc/cuda/*.cu")} == set(KERNELS)
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cuda/*.cu")} == set(
        SETUP.CUDA_SOURCES
    )
