"""A model of the time of a pass from a device's data sheet, for each form of a tile operation.

Times are per element of the products ``[N, V]``, which every part scales with; measurements in
`forms.json` replace them. Legend: D hidden size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rao_kernels.backends.triton.tuning import Pass

DEVICES = Path(__file__).with_name("devices.json")

RAW_BYTES = 4  # an element of the vendor's products
DZ_BYTES = 2  # an element of dz
EPILOGUE_OPERATIONS = {"score": 20, "grad": 22}  # instructions an element; exp counts for eight


@dataclass(frozen=True)
class Device:
    """Peaks of a data sheet (dense), and shares of the tensor peak that products reach.

    vendor_share: of the vendor's library at a head's sizes. fused_share: of a Triton kernel.
    """

    name: str
    tensor_flops: float
    vector_flops: float
    bytes_per_second: float
    vendor_share: float
    fused_share: float


def devices() -> list[Device]:
    return [Device(**row) for row in json.loads(DEVICES.read_text())]


def product_seconds(device: Device, size: int, *, fused: bool = False) -> float:
    share = device.fused_share if fused else device.vendor_share
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
