"""Choose the form of a tile operation, fused or on vendor products, and its launch configuration.

`configs/forms.json` has, for each device and dtype, the largest hidden size at which the fused form
runs: measured, or else `roofline`'s estimate; docs/roofline.md shows both.
Legend: N rows, W entries of a tile, D hidden size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypedDict

import torch

from ..tiles import GROUP, Head, RowState

Pass = Literal["score", "grad"]
# A thread of a row kernel holds 8 entries: with 16, some variants spill registers and fewer threads
# are resident.
ENTRIES_OF_A_THREAD = 8
MOST_GROUPS = 1024 * ENTRIES_OF_A_THREAD // GROUP  # of a program: it has at most 1,024 threads
MERGED_GROUPS = 64
RESERVED_SHARED_BYTES = 1024  # of each block, by CUDA
CONFIGS = Path(__file__).with_name("configs")


@dataclass(frozen=True)
class RowsLaunch:
    """A program holds `groups` groups (a power of two) of a row's entries in registers.

    chunks: number of these in a row: passes of a program that scores it, or programs of a gradient.
    """

    groups: int
    chunks: int
    warps: int


@dataclass(frozen=True)
class MergeLaunch:
    """A program merges statistics of `rows` rows, `groups` groups (a power of two) at a time."""

    rows: int
    groups: int
    warps: int


@dataclass(frozen=True)
class ProductLaunch:
    """A program forms blocks of ``[block_rows, GROUP]`` products, `block_size` of D at a time.

    row_blocks: blocks of rows that pass over the entries together. parts: number of parts
    that a block's entries are cut into; the epilogue takes one at a time. descriptors: blocks are
    loaded by the copy engine (TMA). programs_at_once: programs that the device runs at a time.
    """

    block_rows: int
    block_size: int
    row_blocks: int
    warps: int
    stages: int
    parts: int
    descriptors: bool
    programs_at_once: int

    def programs(self, rows: int, width: int) -> int:
        return min(-(-rows // self.block_rows) * groups(width), self.programs_at_once)


def groups(width: int) -> int:
    """Return the number of groups of a tile."""
    return -(-width // GROUP)


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class Target:
    """Properties of a device that a launch depends on; the interpreter has capability (0, 0)."""

    name: str
    capability: tuple[int, int]
    processors: int
    shared_bytes: int
    is_amd: bool


@cache
def _cuda_target(index: int) -> Target:
    found = torch.cuda.get_device_properties(index)
    return Target(
        found.name,
        (found.major, found.minor),
        found.multi_processor_count,
        found.shared_memory_per_multiprocessor - RESERVED_SHARED_BYTES,
        torch.version.hip is not None,
    )


def target_of(device: torch.device) -> Target:
    if device.type != "cuda":
        return Target("interpreter", (0, 0), processors=2, shared_bytes=1 << 30, is_amd=False)
    return _cuda_target(torch.cuda.current_device() if device.index is None else device.index)


def score_rows_launch(device: torch.device, rows: int, width: int) -> RowsLaunch:
    """Return programs of 512 threads, several to a processor; few rows get the most there are."""
    few = rows <= 2 * target_of(device).processors
    return _rows_launch(device, width, MOST_GROUPS if few else MOST_GROUPS // 2)


def grad_rows_launch(device: torch.device, width: int) -> RowsLaunch:
    """Return programs of 512 threads; a row has as many programs as it has chunks."""
    return _rows_launch(device, width, MOST_GROUPS // 2)


def _rows_launch(device: torch.device, width: int, most: int) -> RowsLaunch:
    count = min(_power_of_two(groups(width)), most)
    threads = count * GROUP // ENTRIES_OF_A_THREAD
    warps = max(1, threads // (64 if target_of(device).is_amd else 32))
    return RowsLaunch(count, -(-groups(width) // count), warps)


def merge_launch(width: int) -> MergeLaunch:
    return MergeLaunch(rows=32, groups=min(_power_of_two(groups(width)), MERGED_GROUPS), warps=4)


def _stages(target: Target, bytes_of_one: int) -> int:
    """Return the stages of a product's pipeline: 4, or as many as fit into shared memory.

    Before sm_90 Triton buffers one block fewer than there are stages.
    """
    if target.is_amd:
        return 2
    unbuffered = 0 if target.capability >= (9, 0) else 1
    return max(2, min(4, target.shared_bytes // bytes_of_one + unbuffered))


def _product_launch(head: Head, rows: int, parts: int) -> ProductLaunch:
    """Return a heuristic launch: blocks of `rows` x 256 products, 8 warps, as many stages as fit.

    With 16 blocks of rows together, concurrent programs read about as many rows as entries. Blocks
    are loaded by descriptor where there is a copy engine (sm_90 and up).
    """
    target = target_of(head.hidden.device)
    itemsize = head.hidden.itemsize
    size = 128 // itemsize
    return ProductLaunch(
        block_rows=rows,
        block_size=size,
        row_blocks=16,
        warps=8,
        stages=_stages(target, (rows + GROUP) * size * itemsize),
        parts=parts,
        descriptors=not target.is_amd and target.capability >= (9, 0),
        programs_at_once=target.processors,
    )


def score_launch(head: Head, state: RowState) -> ProductLaunch:
    """Return blocks of 128 rows in 4 parts, or of 64 in 8 where the epilogue needs many registers.

    test_triton_compile.py checks this.
    """
    more = state.sum_sq_probs is not None or state.logit_sum is not None
    blackwell = target_of(head.hidden.device).capability >= (10, 0)
    return _product_launch(head, rows=64 if more or blackwell else 128, parts=8 if more else 4)


def grad_launch(head: Head) -> ProductLaunch:
    """Return blocks in 4 parts, or 8 where the epilogue would need too many registers."""
    target = target_of(head.hidden.device)
    hopper = target.capability[0] == 9 and not target.is_amd
    transformed = head.bias is not None or head.softcap is not None
    return _product_launch(head, rows=128, parts=4 if hopper and not transformed else 8)


class FormLimits(TypedDict):
    """One object of `configs/forms.json`: the limits of the fused form on a device.

    device: part of the device's name. score, grad: largest D of the fused form in that pass.
    source: "model", or where it was measured.
    """

    device: str
    dtype: str
    score: int
    grad: int
    source: str


@cache
def forms() -> tuple[FormLimits, ...]:
    """Return the objects of `configs/forms.json`; the first that matches counts."""
    return tuple(json.loads((CONFIGS / "forms.json").read_text()))


def is_fused(what: Pass, device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Return True if the fused form runs, False if the vendor's products do.

    The vendor's run on devices and dtypes that `forms` does not list (float32 is not listed: its
    fused kernels spill registers), and where rows of `size` elements cannot be read 16 bytes at a
    time.
    """
    if size % 16:
        return False
    name = target_of(device).name
    for row in forms():
        if row["device"] in name and f"torch.{row['dtype']}" == str(dtype):
            return size <= row[what]
    return False
