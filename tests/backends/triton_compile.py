"""Compile every Triton kernel for a target, the program's argument, without its hardware.

Prints one JSON object from kernel and variant to the fields of `Compiled`. It is a program because
a process has its kernels either interpreted or compiled. The launchers run on CPU tensors; instead
of being launched, kernels are compiled, specialised for their arguments.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from rao_kernels.backends import GROUP, Head, RetainedTile, RowGradients, RowState, Tile
from rao_kernels.backends.triton import blocks, grad_tile_kernels, score_tile_kernels, tuning

ROWS, WIDTH = 256, 8192
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), tuning.Target("A100", (8, 0), 108, 166912, False)),
    "sm_90": (GPUTarget("cuda", 90, 32), tuning.Target("H100", (9, 0), 132, 232448, False)),
    "sm_100": (GPUTarget("cuda", 100, 32), tuning.Target("B200", (10, 0), 148, 232448, False)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), tuning.Target("MI300X", (9, 4), 304, 65536, True)),
}


@dataclass(frozen=True)
class Compiled:
    """Properties of a compiled kernel.

    local_bytes: of each thread, with spilled registers. shared_bytes: of a block; at most
    shared_limit. loads, products: instructions that load memory, or multiply matrices, in machine
    code. assembly: PTX, or machine code where there is none.
    """

    local_bytes: int
    registers: int
    warps: int
    shared_bytes: int
    shared_limit: int
    loads: dict[str, int]
    products: dict[str, int]
    assembly: str


class Driver:
    """The part of a driver that compiling needs."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def counted(pattern: str, code: str) -> dict[str, int]:
    found = re.findall(pattern, code)
    return {name: found.count(name) for name in sorted(set(found))}


def of_nvidia(kernel: triton.compiler.CompiledKernel, shared_limit: int) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = tool("cuobjdump", "--dump-resource-usage", file.name)
        code = tool("cuobjdump", "--dump-sass", file.name)
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Compiled(
        numbers["STACK"] + numbers["LOCAL"],
        numbers["REG"],
        kernel.metadata.num_warps,
        kernel.metadata.shared,
        shared_limit,
        counted(r"\b(LDG\S*|UTMALDG\S*|LDL\S*|STL\S*)", code),
        counted(r"\b(\w*MMA)\b", code),
        kernel.asm["ptx"],
    )


def of_amd(kernel: triton.compiler.CompiledKernel, shared_limit: int) -> Compiled:
    code = kernel.asm["amdgcn"]

    def number(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", code)
        assert match is not None, name
        return int(match[1])

    return Compiled(
        number("private_segment_fixed_size") + 4 * number("vgpr_spill_count"),
        number("vgpr_count"),
        kernel.metadata.num_warps,
        kernel.metadata.shared,
        shared_limit,
        counted(r"\b((?:buffer|global)_load_\w+)", code),
        counted(r"\b(v_mfma)", code),
        code,
    )


# And their D. "ragged": W is odd, as in the last tile of some vocabularies; fused not for sm_100,
# where it spills 16 bytes and configs/forms.json selects no fused kernel.
VARIANTS = {"plain": 4096, "usual": 4096, "uneven": 4112, "full": 4096, "ragged": 4096}
# Every option, on a tile of more entries than a program holds. Its fused kernels are those of full.
WIDE = "wide"


def arguments(variant: str) -> tuple[Head, RowState, RetainedTile | None, RowGradients]:
    """Return inputs of the tile operations for a variant.

    The variants have no option, retained tiles and the entropy, a D that is no multiple of a block,
    every option, or every statistic of a ragged tile.
    """
    size, full = VARIANTS.get(variant, 64), variant in ("full", WIDE)
    usual = full or variant in ("usual", "ragged")
    width = {"ragged": 8001, WIDE: 40_000}.get(variant, WIDTH)

    def rows(want: bool = True, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
        return torch.zeros(ROWS, dtype=dtype) if want else None

    head = Head(
        torch.empty(ROWS, size, dtype=torch.bfloat16),
        torch.empty(width, size, dtype=torch.bfloat16),
        torch.empty(width) if full else None,
        rows(dtype=torch.int64),
        0.5,
        30.0 if full else None,
    )
    every = full or variant == "ragged"
    state = RowState(rows(), rows(), rows(), rows(usual), rows(every), rows(every))
    groups = tuning.groups(width)
    retained = RetainedTile(
        torch.empty(groups, ROWS, GROUP, dtype=torch.bfloat16), torch.empty(groups, ROWS)
    )
    of_row = rows(full, torch.int64)
    gradients = RowGradients(rows(), rows(), rows(), rows(), rows(usual), rows(usual), of_row)
    return head, state, retained if usual else None, gradients


def launches(variant: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield every launcher, with its name."""
    score, grad = score_tile_kernels, grad_tile_kernels
    head, state, retained, gradients = arguments(variant)
    width = len(head.weight)
    tile = Tile(0, width)
    padded = blocks.padded(width)
    raw = torch.empty(ROWS, padded)[:, :width]
    dz = torch.empty(ROWS, padded, dtype=torch.bfloat16)[:, :width]
    partials = score.partial_statistics(head, width)
    yield "score_rows", lambda: score.from_products(head, tile, raw, state, retained, True)
    bare = replace(head, bias=None, softcap=None)  # it has neither
    yield "score_fused", lambda: score.fused(bare, tile, partials, state, retained, True)
    yield "grad_rows", lambda: grad.from_products(head, tile, raw, gradients, dz)
    yield "grad_fused", lambda: grad.fused(head, tile, head.weight, gradients, dz)
    if retained is not None:
        yield "grad_retained", lambda: grad.from_retained(head, tile, retained, gradients, dz)


def compiled(name: str) -> dict[str, Compiled]:
    gpu, target = TARGETS[name]
    driver.set_active(Driver(gpu))
    tuning.target_of = lambda device: target
    results: dict[str, Compiled] = {}
    prefix = ""

    def launch(kernel, grid, device, *given, warps, stages=1, **constants):
        options = blocks.compile_options(warps, stages)
        found = kernel.warmup(*given, grid=(grid,), **constants, **options)
        part = "_merge" if "merge" in kernel.fn.__name__ else ""
        describe = of_amd if target.is_amd else of_nvidia
        results[f"{prefix}{part}"] = describe(found, target.shared_bytes)

    score_tile_kernels.launch = grad_tile_kernels.launch = launch
    for variant in (*VARIANTS, WIDE):
        for call, run in launches(variant):
            fused = "fused" in call
            if fused and (name, variant) == ("sm_100", "ragged"):
                continue
            if fused or variant in ("plain", "full", "ragged", WIDE):
                prefix = f"{call}-{variant}"
                run()
    for unused in ("score_fused-full", "score_fused-full_merge"):
        del results[unused]
    for kind in ("score", "grad"):
        del results[f"{kind}_fused-{WIDE}"]
    return results


if __name__ == "__main__":
    print(json.dumps({key: asdict(value) for key, value in compiled(sys.argv[1]).items()}))
