"""A model of the time of a pass, and of each form of a tile operation, from data sheets.

A pass (`dense`, `sparse`, `screened`) is that of the backend `cuda`, and of `triton` where it calls
the vendor's GEMM: a GEMM takes the longer of its arithmetic and its bytes; row kernels and copies
add theirs; the whole takes at least as long as the host needs to launch it.

The times of a form are per element of the products ``[N, V]``; measurements in `forms.json` replace
them. There the bytes that a GEMM writes are added to its arithmetic, not hidden behind it, which
favours the fused form. Legend: N rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from rao_kernels import engine
from rao_kernels.backends.triton.tuning import Pass

DEVICES = Path(__file__).with_name("devices.json")

RAW_BYTES = 4  # an element of the vendor's products
DZ_BYTES = 2  # an element of dz
MEMORY_SHARE = 0.8  # of the memory's rate that row kernels and copies reach
# Of the host: a call, and a tile of forward and of backward (Python, launches, choice of a GEMM).
CALL_SECONDS, SCORE_SECONDS, GRAD_SECONDS = 100e-6, 65e-6, 130e-6
TOLERANCE, KEPT = 2.0**-9, 0.233  # of a sparse backward; docs/sparse.md, tiles of 4,096 entries
SAMPLED_ROWS = 66  # for the vocabulary order
EPILOGUE_OPERATIONS = {"score": 20, "grad": 22}  # instructions an element; exp counts for eight


@dataclass(frozen=True)
class Device:
    """Peaks of a data sheet (dense), and shares of the tensor peak that products reach.

    vendor_share: of the vendor's library at a head's sizes. fused_share: of a Triton kernel; None:
    no form of it is modelled.
    """

    name: str
    tensor_flops: float
    vector_flops: float
    bytes_per_second: float
    vendor_share: float
    fused_share: float | None


@dataclass(frozen=True)
class Shape:
    """A call: N, D and V, in bf16."""

    rows: int
    size: int
    vocabulary: int

    def plan(self, workspace_bytes: int | None = None, tolerance: float = 0.0) -> engine.Plan:
        """Return the op's own plan on the backend `cuda`."""
        return engine.make_plan(
            self.rows,
            self.vocabulary,
            self.size,
            torch.bfloat16,
            backend="cuda",
            device_type="cuda",
            workspace_bytes=workspace_bytes,
            tolerance=tolerance,
        )


@dataclass(frozen=True)
class Time:
    """Seconds of a pass. gemm: of the GEMMs' arithmetic; memory: of bytes that no arithmetic hides;
    launches: of the host, beside the other two."""

    gemm: float = 0.0
    memory: float = 0.0
    launches: float = 0.0

    def __add__(self, other: Time) -> Time:
        return Time(
            self.gemm + other.gemm, self.memory + other.memory, self.launches + other.launches
        )

    @property
    def seconds(self) -> float:
        return max(self.gemm + self.memory, self.launches)

    @property
    def bound(self) -> str:
        """Return what takes most of the time."""
        if self.launches > self.gemm + self.memory:
            return "launches"
        return "GEMM" if self.gemm >= self.memory else "HBM"


def devices() -> list[Device]:
    return [Device(**row) for row in json.loads(DEVICES.read_text())]


def modelled() -> list[Device]:
    """Return the devices whose fused forms have a model."""
    return [device for device in devices() if device.fused_share is not None]


def moving(device: Device, nbytes: float) -> Time:
    return Time(memory=nbytes / (device.bytes_per_second * MEMORY_SHARE))


def gemm(device: Device, multiply_adds: float, nbytes: float, rate: float = 1.0) -> Time:
    """Return the time of GEMMs that move so many bytes. rate: of the operands, 2 in 8 bits."""
    arithmetic = 2 * multiply_adds / (device.tensor_flops * device.vendor_share * rate)
    return Time(gemm=arithmetic, memory=max(0.0, moving(device, nbytes).memory - arithmetic))


def retained_share(plan: engine.Plan) -> float:
    """Return the share of the logits that a plan retains."""
    slots = zip(plan.tiles, plan.slots(plan.rows), strict=True)
    return sum(tile.width for tile, slot in slots if slot is not None) / plan.vocabulary


def forward(device: Device, shape: Shape, plan: engine.Plan, retained: float = 0.0) -> Time:
    """Return the time of scoring: fp32 logits written, then read by the row kernel."""
    rows, size, tiles = shape.rows, shape.size, len(plan.tiles)
    logits, weight = rows * shape.vocabulary, shape.vocabulary * size
    product = gemm(device, logits * size, 2 * weight + 2 * tiles * rows * size + 4 * logits)
    return (
        product
        + moving(device, (RAW_BYTES + DZ_BYTES * retained) * logits)
        + Time(launches=CALL_SECONDS + SCORE_SECONDS * tiles)
    )


def backward(
    device: Device, shape: Shape, plan: engine.Plan, retained: float, kept: float = 1.0
) -> Time:
    """Return the time of the gradients, of the share of rows that each tile keeps."""
    rows, size, tiles = kept * shape.rows, shape.size, len(plan.tiles)
    logits, weight = rows * shape.vocabulary, shape.vocabulary * size
    again = 1.0 - retained
    hidden = tiles * rows * size
    products = (
        gemm(device, again * logits * size, again * (2 * weight + 2 * hidden + 4 * logits))
        + gemm(device, logits * size, 2 * logits + 2 * weight + 8 * hidden)  # into fp32 dhidden
        + gemm(device, logits * size, 2 * logits + 2 * weight + 2 * hidden)
    )
    read = DZ_BYTES * retained + RAW_BYTES * again
    return (
        products
        + moving(device, (read + DZ_BYTES) * logits)
        + Time(launches=CALL_SECONDS + GRAD_SECONDS * tiles)
    )


def dense(device: Device, shape: Shape, workspace_bytes: int | None = None) -> Time:
    """Return the time of forward and backward; workspace_bytes: see the op."""
    plan = shape.plan(workspace_bytes)
    retained = retained_share(plan)
    return forward(device, shape, plan, retained) + backward(device, shape, plan, retained)


def _copies(device: Device, shape: Shape, plan: engine.Plan) -> Time:
    """Return the time of a sparse backward's copies, each read and written.

    Of each tile: its weight gathered, its gradient put to its rows. Of the rows it keeps: hidden
    gathered, fp32 dhidden gathered and put back.
    """
    weight = shape.vocabulary * shape.size
    hidden = len(plan.tiles) * KEPT * shape.rows * shape.size
    return moving(device, 8 * weight + (4 + 16) * hidden)


def sparse(device: Device, shape: Shape) -> Time:
    """Return the time of forward and a sparse backward that keeps the share `KEPT` of the pairs.

    The vocabulary is in another order: forward too gathers the weight of each tile.
    """
    plan = shape.plan(tolerance=TOLERANCE)
    retained, weight = retained_share(plan), shape.vocabulary * shape.size
    ordering = gemm(device, SAMPLED_ROWS * weight, 2 * weight) + moving(device, 4 * weight)
    return (
        ordering
        + forward(device, shape, plan, retained)
        + backward(device, shape, plan, retained, KEPT)
        + _copies(device, shape, plan)
    )


def screened(device: Device, shape: Shape) -> Time:
    """Return the time of an idea that is not built: score in 8 bits, at twice the rate, then score
    the kept pairs again in bf16, and differentiate those.

    Beside the sparse backward: the weight quantised (read, written in a byte), int32 sums read.
    """
    plan = shape.plan(tolerance=TOLERANCE)
    weight, logits = shape.vocabulary * shape.size, shape.rows * shape.vocabulary
    return (
        moving(device, 3 * weight)
        + gemm(device, logits * shape.size, weight + 4 * logits, rate=2.0)
        + moving(device, RAW_BYTES * logits)
        + Time(launches=CALL_SECONDS + SCORE_SECONDS * len(plan.tiles))
        + backward(device, shape, plan, 0.0, KEPT)
        + _copies(device, shape, plan)
    )


def product_seconds(device: Device, size: int, *, fused: bool = False) -> float:
    share = device.fused_share if fused else device.vendor_share
    assert share is not None
    return 2 * size / (device.tensor_flops * share)


def row_kernel_bytes(what: Pass, *, retained: bool = False) -> int:
    """Return the bytes moved besides the matrix product.

    Products are written and read, or retained ones written (score) or read (grad); dz is written.
    """
    if what == "score":
        return 2 * RAW_BYTES + (DZ_BYTES if retained else 0)
    return (DZ_BYTES if retained else 2 * RAW_BYTES) + DZ_BYTES


def unfused_seconds(device: Device, what: Pass, size: int) -> float:
    """Return the time of the vendor's product, then of a row kernel bound by memory bandwidth."""
    return product_seconds(device, size) + row_kernel_bytes(what) / device.bytes_per_second


def fused_seconds(device: Device, what: Pass, size: int) -> float:
    """Return the time of Triton's product, then of an epilogue that does not overlap with it."""
    epilogue = EPILOGUE_OPERATIONS[what] / (device.vector_flops / 2)
    written = DZ_BYTES if what == "grad" else 0
    return product_seconds(device, size, fused=True) + epilogue + written / device.bytes_per_second


def largest_fused_size(device: Device, what: Pass) -> int:
    """Return the largest D at which the fused form is faster; both times are linear in D."""
    saved = unfused_seconds(device, what, 0) - fused_seconds(device, what, 0)
    lost = product_seconds(device, 1, fused=True) - product_seconds(device, 1)
    return int(saved / lost) if saved > 0 else 0
