"""Write the tables of docs/roofline.md and the rows of the forms' table that nobody has measured.

python docs/generate_roofline.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import roofline
from rao_kernels.backends.triton import tuning
from roofline import Device, Shape, Time

PAGE = Path(__file__).with_name("roofline.md")
FORMS = tuning.CONFIGS / "forms.json"
ROWS, WIDTH = 8192, 8192
EVERYTHING = 1 << 62
HEADLINES = {
    "4,096 x 131,072": Shape(ROWS, 4096, 131_072),
    "Qwen3-8B": Shape(ROWS, 4096, 151_936),
    "Gemma-2-2B": Shape(ROWS, 2304, 256_000),
}
PASSES: dict[str, Callable[[Device, Shape], Time]] = {
    "forward": lambda d, s: roofline.forward(d, s, s.plan()),
    "all retained": lambda d, s: roofline.dense(d, s, EVERYTHING),
    "default": roofline.dense,
    "all recomputed": lambda d, s: roofline.dense(d, s, 0),
    "sparse": roofline.sparse,
    "screened, not built": roofline.screened,
}
FEW = (64, 128, 256, 512, 1024, 2048)
HEADS = {  # D and V
    "Llama-3-8B": (4096, 128_256),
    "Qwen3-8B": (4096, 151_936),
    "Gemma-3-4B": (2560, 262_208),
    "Gemma-2-2B": (2304, 256_000),
    "SmolLM2-1.7B": (2048, 49_152),
    "SmolLM2-135M": (576, 49_152),
}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def devices() -> str:
    header = ("device", "bf16 TFLOP/s", "fp32 TFLOP/s", "TB/s", "FLOP a byte", "vendor's share")
    return table(
        (*header, "share of our product"),
        (
            (
                d.name,
                f"{d.tensor_flops / 1e12:.0f}",
                f"{d.vector_flops / 1e12:.3g}",
                f"{d.bytes_per_second / 1e12:.2f}",
                f"{d.tensor_flops / d.bytes_per_second:.0f}",
                f"{d.vendor_share:.2f}",
                "" if d.fused_share is None else f"{d.fused_share:.2f}",
            )
            for d in roofline.devices()
        ),
    )


def floors() -> str:
    """Least time at the data sheet's peak, of arithmetic or of operands read and written once."""

    def seconds(device: Device, size: int, vocabulary: int, products: int) -> float:
        flops = products * 2 * ROWS * size * vocabulary
        moved = 2 * (2 if products == 1 else 4) * size * (ROWS + vocabulary)
        return max(flops / device.tensor_flops, moved / device.bytes_per_second)

    names = [device.name for device in roofline.devices()]
    return table(
        ("head", "D", "V", "TFLOP of NDV", *(f"{name}: 2 / 6 / 8 NDV ms" for name in names)),
        (
            (
                name,
                f"{size:,}",
                f"{vocabulary:,}",
                f"{ROWS * size * vocabulary / 1e12:.2f}",
                *(
                    " / ".join(ms(seconds(d, size, vocabulary, products)) for products in (1, 3, 4))
                    for d in roofline.devices()
                ),
            )
            for name, (size, vocabulary) in HEADS.items()
        ),
    )


def parts() -> str:
    """Time of each part beside the product it goes with, as a share of that product."""
    shares: dict[str, Callable[[Device, int], float]] = {
        "score, unfused": lambda d, s: _share(d, s, roofline.row_kernel_bytes("score")),
        "grad, retained": lambda d, s: _share(
            d, s, roofline.row_kernel_bytes("grad", retained=True)
        ),
        "grad, recomputed, unfused": lambda d, s: _share(d, s, roofline.row_kernel_bytes("grad")),
        "score, fused": lambda d, s: _fused_share(d, "score", s),
        "grad, recomputed, fused": lambda d, s: _fused_share(d, "grad", s),
        "sums of dhidden": lambda d, s: _share(d, s, 8 * s / WIDTH),
    }
    sizes = (576, 2048, 4096, 8192)
    return table(
        ("part", *(f"{d.name}: D = {' / '.join(map(str, sizes))}" for d in roofline.modelled())),
        (
            (part, *(" / ".join(f"{share(d, s):.0%}" for s in sizes) for d in roofline.modelled()))
            for part, share in shares.items()
        ),
    )


def _share(device: Device, size: int, moved: float) -> float:
    return moved / device.bytes_per_second / roofline.product_seconds(device, size)


def _fused_share(device: Device, what: tuning.Pass, size: int) -> float:
    vendors = roofline.product_seconds(device, size)
    return roofline.fused_seconds(device, what, size) / vendors - 1.0


def passes() -> str:
    """Each pass at 8,192 rows of each head, on each device, and what takes most of it."""
    names = [device.name for device in roofline.devices()]
    return table(
        ("head", "pass", *(f"{name}, ms" for name in names)),
        (
            (head, name, *(_cell(make(device, shape)) for device in roofline.devices()))
            for head, shape in HEADLINES.items()
            for name, make in PASSES.items()
        ),
    )


def _cell(time: roofline.Time) -> str:
    return f"{ms(time.seconds)} {time.bound}"


def breakdown() -> str:
    """The passes of the first head on an H200, part by part."""
    (device,) = (one for one in roofline.devices() if one.name == "H200")
    shape = next(iter(HEADLINES.values()))
    rows = []
    for name, make in PASSES.items():
        time = make(device, shape)
        parts = (time.gemm, time.memory, time.launches, time.seconds)
        rows.append((name, *(f"{ms(part)}" for part in parts)))
    return table(("pass", "GEMM, ms", "HBM, ms", "launches, ms", "total, ms"), rows)


def few_rows() -> str:
    """Few rows of the first head on an H200."""
    (device,) = (one for one in roofline.devices() if one.name == "H200")
    first = next(iter(HEADLINES.values()))
    rows = []
    for count in FEW:
        shape = replace(first, rows=count)
        plan = shape.plan()
        floor = 6 * count * shape.size * shape.vocabulary / device.tensor_flops
        times = (roofline.forward(device, shape, plan), roofline.dense(device, shape))
        rows.append((f"{count:,}", str(len(plan.tiles)), *map(_cell, times), ms(floor)))
    header = ("N", "tiles", "forward, ms", "forward and backward, ms", "6 NDV at the peak, ms")
    return table(header, rows)


def forms() -> list[tuning.FormLimits]:
    """The table in use, its rows of the model made anew."""
    measured = [row for row in tuning.forms() if row["source"] != "model"]
    known = {(row["device"], row["dtype"]) for row in measured}
    modelled = [
        tuning.FormLimits(
            device=device.name,
            dtype=dtype,
            score=roofline.largest_fused_size(device, "score"),
            grad=roofline.largest_fused_size(device, "grad"),
            source="model",
        )
        for device in roofline.modelled()
        for dtype in ("bfloat16", "float16")
        if (device.name, dtype) not in known
    ]
    return [*measured, *modelled]


def forms_text(rows: list[tuning.FormLimits]) -> str:
    return "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]\n"


def forms_table() -> str:
    header = ("device", "dtype", "score: largest D", "grad: largest D", "source")
    return table(header, ([str(value) for value in row.values()] for row in forms()))


def page(text: str) -> str:
    """The page with each table put anew between its marks."""
    for make in (devices, passes, breakdown, few_rows, floors, parts, forms_table):
        mark = f"<!-- {make.__name__} -->"
        before, _, after = text.split(mark)
        text = f"{before}{mark}\n{make()}\n{mark}{after}"
    return text


if __name__ == "__main__":
    FORMS.write_text(forms_text(forms()))
    tuning.forms.cache_clear()
    PAGE.write_text(page(PAGE.read_text()))
