"""Every Triton kernel compiled for every target: registers, wide loads, tensor-core instructions.

No GPU is needed; a missing compiler fails these tests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
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
VARIANTS = ("plain", "usual", "uneven", "full")
FUSED = [f"{kind}_fused-{variant}" for kind in ("score", "grad") for variant in VARIANTS]
READING_TILES = [
    *FUSED,
    *(f"{kind}_rows-{variant}" for kind in ("score", "grad") for variant in ("plain", "full")),
    "grad_retained-full",
]
KERNELS = [*READING_TILES, *(f"score_fused-{variant}_merge" for variant in VARIANTS)]


@cache
def compiled(target: str) -> dict[str, dict[str, object]]:
    """Return the output of `PROGRAM` for a target."""
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", PROGRAM, target]
    done = subprocess.run(command, cwd=ROOT, env=without, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(params=TENSOR_INSTRUCTIONS)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_all_kernels_are_compiled(target: str) -> None:
    assert sorted(compiled(target)) == sorted(KERNELS)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_register_is_spilled(target: str, kernel: str) -> None:
    found = compiled(target)[kernel]
    assert found["local_bytes"] == 0, found["loads"]


@pytest.mark.parametrize("kernel", READING_TILES)
def test_tiles_are_read_16_bytes_at_a_time(target: str, kernel: str) -> None:
    loads = compiled(target)[kernel]["loads"]
    assert isinstance(loads, dict)
    assert any(re.search(WIDE_LOADS[target], name) for name in loads), loads


@pytest.mark.parametrize("kernel", FUSED)
def test_products_are_of_the_tensor_cores(target: str, kernel: str) -> None:
    assert TENSOR_INSTRUCTIONS[target] in str(compiled(target)[kernel]["assembly"])
