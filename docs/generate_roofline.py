"""Write the tables of docs/roofline.md and the rows of the forms' table that nobody has measured.

python docs/generate_roofline.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import roofline
from rao_kernels.backends.triton import tuning
from roofline import Device

PAGE = Path(__file__).with_name("roofline.md")
FORMS = tuning.CONFIGS / "forms.json"
ROWS, WIDTH = 8192, 8192
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
                f"{d.fused_share:.2f}",
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
        ("part", *(f"{d.name}: D = {' / '.join(map(str, sizes))}" for d in roofline.devices())),
        (
            (part, *(" / ".join(f"{share(d, s):.0%}" for s in sizes) for d in roofline.devices()))
            for part, share in shares.items()
        ),
    )


def _share(device: Device, size: int, moved: float) -> float:
    return moved / device.bytes_per_second / roofline.product_seconds(device, size)


def _fused_share(device: Device, what: tuning.Pass, size: int) -> float:
    vendors = roofline.product_seconds(device, size)
    return roofline.fused_seconds(device, what, size) / vendors - 1.0


def expected() -> str:
    """Forward and backward by the model, nothing retained and everything retained."""

    def seconds(device: Device, size: int, vocabulary: int, *, retained: bool) -> float:
        score, grad = (
            min(
                roofline.unfused_seconds(device, what, size),
                roofline.fused_seconds(device, what, size),
            )
            for what in ("score", "grad")
        )
        if retained:
            score += roofline.DZ_BYTES / device.bytes_per_second
            grad = roofline.row_kernel_bytes("grad", retained=True) / device.bytes_per_second
        sums = 8 * size / WIDTH / device.bytes_per_second
        products = 2 * roofline.product_seconds(device, size)
        return ROWS * vocabulary * (score + grad + sums + products)

    names = [device.name for device in roofline.devices()]
    return table(
        ("head", *(f"{name}: recomputed / retained ms" for name in names)),
        (
            (
                name,
                *(
                    " / ".join(ms(seconds(d, *head, retained=kept)) for kept in (False, True))
                    for d in roofline.devices()
                ),
            )
            for name, head in HEADS.items()
        ),
    )


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
        for device in roofline.devices()
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
    for make in (devices, floors, parts, expected, forms_table):
        mark = f"<!-- {make.__name__} -->"
        before, _, after = text.split(mark)
        text = f"{before}{mark}\n{make()}\n{mark}{after}"
    return text


if __name__ == "__main__":
    FORMS.write_text(forms_text(forms()))
    tuning.forms.cache_clear()
    PAGE.write_text(page(PAGE.read_text()))
