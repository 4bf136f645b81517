"""The vendor's matrix product, with every sum in the accumulator's precision.

On a GPU it takes half-precision operands and returns its fp32 sums; elsewhere operands are widened
first. Settings of torch that make it less precise, or fail, are set aside while it is called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def on_gpu(tensor: Tensor) -> bool:
    """Return True where the vendor's library is cuBLAS, or that of ROCm."""
    return tensor.is_cuda


def product(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Return ``a @ b`` in `dtype`: that of the operands, or of their sums.

    out: memory for it, any row stride.
    """
    a, b = _operands(a, b, dtype)
    with _full_precision(a):
        if a.dtype == dtype:
            return torch.mm(a, b, out=out)
        return torch.mm(a, b, out_dtype=dtype, out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Compute ``total += a @ b``, accumulated in the dtype of `total`."""
    a, b = _operands(a, b, total.dtype)
    # torch takes a single row of `total` for a bias: another kernel, which TunableOp refuses.
    if a.dtype != total.dtype and (len(total) == 1 or not _fp32_sums(a.device, a.dtype).added):
        total.add_(product(a, b, total.dtype))
        return
    with _full_precision(a):
        if a.dtype == total.dtype:
            torch.addmm(total, a, b, out=total)
        else:
            torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def _operands(a: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the operands, widened to `dtype` where the GEMM cannot do that itself."""
    if a.dtype == dtype or (on_gpu(a) and _fp32_sums(a.device, a.dtype).returned):
        return a, b
    return a.to(dtype), b.to(dtype)


class _Fp32Sums(NamedTuple):
    """True for each form of half-precision GEMM that torch has: fp32 sums returned, or added."""

    returned: bool
    added: bool


@cache
def _fp32_sums(device: torch.device, dtype: torch.dtype) -> _Fp32Sums:
    """Try both GEMMs once: torch 2.10 has them, earlier builds of it or a BLAS library may not."""
    a = torch.zeros(16, 16, dtype=dtype, device=device)
    total = torch.zeros(16, 16, dtype=torch.float32, device=device)

    def returned() -> Tensor:
        return torch.mm(a, a, out_dtype=torch.float32, out=total)

    def added() -> Tensor:
        return torch.addmm(total, a, a, out_dtype=torch.float32, out=total)

    with _full_precision(a):
        return _Fp32Sums(
            _runs(returned, f"products of {dtype} are computed in float32, several times slower"),
            _runs(added, f"sums of products of {dtype} take another pass over memory"),
        )


def _runs(call: Callable[[], Tensor], without: str) -> bool:
    """Return True if torch implements the call; else warn of what happens without it."""
    try:
        call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        library = torch.backends.cuda.preferred_blas_library()
        logger.warning("torch %s with %s: %s: %s", torch.__version__, library, without, error)
        return False
    return True


class _Setting:
    """A setting of ``torch.backends.cuda.matmul`` that is harmless while any thread is inside.

    It is the whole process's: products that other threads call meanwhile see it too. The first to
    enter changes it if need be, the last to leave restores it, unless it was changed meanwhile.
    """

    def __init__(self, name: str, *harmless: object) -> None:
        self._name, self._harmless = name, harmless
        self._lock = Lock()
        self._inside = 0
        self._before: object = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = getattr(torch.backends.cuda.matmul, self._name)
                if self._before not in self._harmless:
                    self._set(self._harmless[0])
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside or self._before in self._harmless:
                return
            if getattr(torch.backends.cuda.matmul, self._name) == self._harmless[0]:
                self._set(self._before)

    def _set(self, value: object) -> None:
        setattr(torch.backends.cuda.matmul, self._name, value)


# TF32 rounds fp32 operands to 10 bits; `torch.set_float32_matmul_precision("high")` turns it on.
_IEEE = _Setting("fp32_precision", "ieee", "none")
# Sums in fp16: imprecise, and torch refuses to return them as fp32.
_FP32_ACCUMULATION = _Setting("allow_fp16_accumulation", False)
# Parts of a sum that are rounded to bf16 before they are added. torch allows that by default, and
# cuBLAS does it where the result is small and the sum long, as in dhidden of few rows.
_FP32_REDUCTION = _Setting("allow_bf16_reduced_precision_reduction", False)
_SETTINGS: dict[torch.dtype, AbstractContextManager[None]] = {
    torch.float32: _IEEE,
    torch.float16: _FP32_ACCUMULATION,
    torch.bfloat16: _FP32_REDUCTION,
}


def _full_precision(operand: Tensor) -> AbstractContextManager[None]:
    """Set aside what would make a product of this operand imprecise."""
    return _SETTINGS.get(operand.dtype, nullcontext()) if on_gpu(operand) else nullcontext()
