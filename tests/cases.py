"""Problems that the op and every backend are tested on, and the tolerance of their results."""

from __future__ import annotations

import torch
from torch import Tensor

from . import seeds
from .oracle import Problem

# Added to twice plain torch's error: a few units in the last place of the result's dtype.
FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-5, torch.float16: 2e-5}


def make(
    rows: int,
    vocabulary: int,
    size: int,
    *,
    dtype: torch.dtype = torch.float32,
    logit_std: float = 2.0,
    bias: bool = False,
    softcap: float | None = None,
    scale: float = 1.0,
    ignored: float = 0.0,
    offset: float = 0.0,
    entropy: bool = False,
    lse: bool = False,
    seed: int = 0,
) -> Problem:
    """A random problem. logit_std: spread of the logits; offset: added to all, by the bias."""
    generator = seeds.generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    dropped = torch.rand(rows, generator=generator) < ignored
    given_bias = normal(vocabulary) + offset if bias or offset else None
    return Problem(
        hidden=normal(rows, size).to(dtype),
        weight=(normal(vocabulary, size) * logit_std / size**0.5).to(dtype),
        targets=targets.masked_fill(dropped, -100),
        bias=None if given_bias is None else given_bias.to(dtype),
        logit_scale=scale,
        logit_softcap=softcap,
        dlogp=normal(rows),
        dentropy=normal(rows) if entropy else None,
        dlse=normal(rows) if lse else None,
    )


# name -> keyword arguments of `make`. Odd sizes, tiles of one entry, flat and peaked softmax.
PROBLEMS: dict[str, dict[str, object]] = {
    "plain": {"rows": 37, "vocabulary": 5000, "size": 48},
    "odd": {"rows": 13, "vocabulary": 4099, "size": 33},
    "one_row": {"rows": 1, "vocabulary": 3001, "size": 64},
    "few_rows": {"rows": 5, "vocabulary": 6151, "size": 40},
    "tiny": {"rows": 3, "vocabulary": 2, "size": 1},
    "one_entry": {"rows": 4, "vocabulary": 1, "size": 7},
    "ragged_by_one": {"rows": 9, "vocabulary": 2049, "size": 16},
    "many_rows": {"rows": 301, "vocabulary": 2500, "size": 24},
    "flat": {"rows": 20, "vocabulary": 3000, "size": 32, "logit_std": 0.01},
    "peaked": {"rows": 20, "vocabulary": 3000, "size": 32, "logit_std": 30.0},
    "bias": {"rows": 19, "vocabulary": 2700, "size": 24, "bias": True},
    "softcap": {"rows": 19, "vocabulary": 2700, "size": 24, "softcap": 3.0, "logit_std": 4.0},
    "everything": {
        "rows": 23,
        "vocabulary": 4500,
        "size": 31,
        "bias": True,
        "softcap": 5.0,
        "scale": 0.7,
        "ignored": 0.4,
        "entropy": True,
        "lse": True,
    },
    "temperature": {"rows": 11, "vocabulary": 2300, "size": 24, "scale": 1 / 0.6, "entropy": True},
    "offset_up": {"rows": 11, "vocabulary": 2300, "size": 24, "offset": 1e4},
    "offset_down": {"rows": 11, "vocabulary": 2300, "size": 24, "offset": -1e4},
    "all_ignored": {"rows": 6, "vocabulary": 2100, "size": 8, "ignored": 1.1},
    "no_rows": {"rows": 0, "vocabulary": 2100, "size": 8},
}


def error(got: Tensor, truth: Tensor) -> float:
    """Largest error, relative to the largest true value (absolute where all are 0)."""
    if not truth.numel():
        return 0.0
    scale = float(truth.abs().max()) or 1.0
    return float((got.double() - truth).abs().max()) / scale


def allowed(plain: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """Twice the error of plain torch in `dtype`, plus a floor."""
    return 2 * error(plain, truth) + FLOOR[dtype]
