"""Every Triton kernel compiled for every target: registers, memory, loads, products.

No GPU is needed; a missing compiler fails these tests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import pytest

# Each target's matrix instruction in its assembly, and its loads of 16 bytes or whole blocks.
TENSOR_INSTRUCTIONS = {
    "sm_80": "mma.sync",
    "sm_90": "wgmma.mma_async",
    "sm_100": "tcgen05.mma",
    "gfx942": "v_mfma",
}
WIDE_LOADS = {
    "sm_80": r"LDG.*\.128",
    "sm_90": r"LDG.*\.128|UTMALDG",
    "sm_100": r"LDG.*\.128|UTMALDG",
    "gfx942": "load_dwordx4",
}
PROGRAM = "tests.backends.triton_compile"
ROOT = Path(__file__).parents[2]
VARIANTS = ("plain", "usual", "uneven", "full", "ragged")
# The scoring kernel has no bias and no softcap.
SCORE_VARIANTS = tuple(variant for variant in VARIANTS if variant != "full")
FUSED = [
    *(f"score_fused-{variant}" for variant in SCORE_VARIANTS),
    *(f"grad_fused-{variant}" for variant in VARIANTS),
]
BY_ROWS = [
    *(
        f"{kind}_rows-{variant}"
        for kind in ("score", "grad")
        for variant in ("plain", "full", "wide")
    ),
    "score_rows-ragged",
    *(f"grad_retained-{variant}" for variant in ("full", "ragged", "wide")),
]
READING_TILES = [*FUSED, *BY_ROWS]
CUT = "grad_rows-ragged"  # recomputed products end with the last entry
KERNELS = [
    *READING_TILES,
    CUT,
    *(f"score_fused-{variant}_merge" for variant in (*SCORE_VARIANTS, "wide")),
]


@cache
def compiled(target: str) -> dict[str, dict[str, object]]:
    """Return the output of `PROGRAM` for a target."""
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", PROGRAM, target]
    done = subprocess.run(command, cwd=ROOT, env=without, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def on_targets(kernels: list[str]) -> list[tuple[str, str]]:
    """Return the kernels of each target; `PROGRAM` says which has fewer, and why."""
    pairs = product(TENSOR_INSTRUCTIONS, kernels)
    return [pair for pair in pairs if not (pair[0] == "sm_100" and "fused-ragged" in pair[1])]


@pytest.mark.parametrize("target", TENSOR_INSTRUCTIONS)
def test_all_kernels_are_compiled(target: str) -> None:
    found = {(target, kernel) for kernel in compiled(target)}
    assert found == {pair for pair in on_targets(KERNELS) if pair[0] == target}


@pytest.mark.parametrize(("target", "kernel"), on_targets(KERNELS))
def test_no_register_is_spilled(target: str, kernel: str) -> None:
    found = compiled(target)[kernel]
    assert found["local_bytes"] == 0, found["loads"]


@pytest.mark.parametrize(("target", "kernel"), on_targets(READING_TILES))
def test_tiles_are_read_16_bytes_at_a_time(target: str, kernel: str) -> None:
    loads = compiled(target)[kernel]["loads"]
    assert isinstance(loads, dict)
    assert any(re.search(WIDE_LOADS[target], name) for name in loads), loads


@pytest.mark.parametrize(("target", "kernel"), on_targets(FUSED))
def test_products_are_of_the_tensor_cores(target: str, kernel: str) -> None:
    assert TENSOR_INSTRUCTIONS[target] in str(compiled(target)[kernel]["assembly"])


@pytest.mark.parametrize(("target", "kernel"), on_targets(KERNELS))
def test_shared_memory_suffices(target: str, kernel: str) -> None:
    found = compiled(target)[kernel]
    assert int(found["shared_bytes"]) <= int(found["shared_limit"])


@pytest.mark.parametrize("kernel", FUSED)
def test_a_step_is_one_product_of_each_warp_group(kernel: str) -> None:
    """64 of D a step, 16 an instruction: none is split, and the loop is not unrolled."""
    assert compiled("sm_90")[kernel]["products"] == {"HGMMA": 4}


@pytest.mark.parametrize("kernel", [*BY_ROWS, CUT])
@pytest.mark.parametrize("nvidia", ["sm_80", "sm_90", "sm_100"])
def test_32_warps_are_resident(nvidia: str, kernel: str) -> None:
    """Of 64: enough loads are in flight. A thread's registers are counted in eights, of 65,536."""
    found = compiled(nvidia)[kernel]
    registers, warps = (int(found[name]) for name in ("registers", "warps"))
    blocks = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    assert blocks * warps >= 32
