"""Check the arguments of the public functions, once and without a host read."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from ..errors import InputError
from ..types import EngineOptions

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of the products: autocast's where it is on (but for float64), else that of
    `hidden`."""
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


def check_tensors(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, compute_dtype: torch.dtype
) -> None:
    for name, tensor in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOAT_DTYPES:
            raise InputError(name, f"a tensor of a dtype in {FLOAT_DTYPES}", _described(tensor))
        if hasattr(tensor, "placements"):
            raise InputError(
                name,
                "a plain tensor",
                "a DTensor",
                "Run the op where the parameter is gathered, inside the head's own forward.",
            )
        if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(
            tensor
        ):
            raise InputError(
                name, "a plain tensor", "one inside a torch.func transform", "Use autograd instead."
            )
        mixed = tensor.dtype != hidden.dtype and compute_dtype == hidden.dtype
        if mixed and not torch.is_autocast_enabled(hidden.device.type):
            raise InputError(
                name,
                f"the dtype of `hidden` ({hidden.dtype})",
                str(tensor.dtype),
                "Cast one of them, or run under torch.autocast.",
            )
        if tensor.dtype == torch.float64 and compute_dtype != torch.float64:
            raise InputError(
                name,
                f"a dtype no wider than float32 to compute in {compute_dtype}",
                "torch.float64",
            )
        if tensor.device != hidden.device:
            raise InputError(name, f"a tensor on {hidden.device}", f"one on {tensor.device}")
    if hidden.dim() < 1 or hidden.shape[-1] < 1:
        raise InputError("hidden", "shape [..., D] with D >= 1", _described(hidden))
    if weight.dim() != 2 or weight.shape[0] < 1 or weight.shape[1] != hidden.shape[-1]:
        expected = f"shape [V, {hidden.shape[-1]}], V >= 1, to match `hidden`"
        raise InputError("weight", expected, _described(weight))
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError("bias", f"shape [{weight.shape[0]}]", _described(bias))
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
        raise InputError("targets", "an int64 tensor", _described(targets))
    if targets.shape != hidden.shape[:-1]:
        expected = f"shape {list(hidden.shape[:-1])}, that of `hidden` without its last dimension"
        raise InputError("targets", expected, _described(targets))
    if targets.device != hidden.device:
        raise InputError("targets", f"a tensor on {hidden.device}", f"one on {targets.device}")


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    return f"{type(value).__name__} {value!r}"


def check_scalars(logit_scale: float, logit_softcap: float | None) -> None:
    _check_positive("logit_scale", logit_scale, "A temperature T is logit_scale = 1 / T.")
    if logit_softcap is not None:
        _check_positive("logit_softcap", logit_softcap)


def _check_positive(name: str, value: float, fix: str = "") -> None:
    if not _is_number(value) or not 0 < value < math.inf:
        raise InputError(name, "a positive finite float", _described(value), fix)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def checked_options(options: EngineOptions, weight: Tensor) -> EngineOptions:
    """Check the options and return them under their current names."""
    if unknown := set(options) - EngineOptions.__optional_keys__:
        known = sorted(EngineOptions.__optional_keys__ - {"word_order"})
        raise InputError("options", f"names among {known}", sorted(unknown))
    options = _renamed(options)
    tolerance = options.get("grad_tolerance", 0.0)
    if not _is_number(tolerance) or not 0.0 <= tolerance < 1.0:
        expected = "a probability in [0, 1); 0.0 drops nothing"
        raise InputError("grad_tolerance", expected, _described(tolerance))
    workspace = options.get("workspace_bytes")
    if workspace is not None and (not isinstance(workspace, int) or workspace < 0):
        raise InputError("workspace_bytes", "None or an integer >= 0", workspace)
    order = options.get("vocab_order")
    if order is not None:
        is_order = isinstance(order, Tensor) and order.dtype == torch.int64
        if not is_order or order.shape != weight.shape[:1] or order.device != weight.device:
            expected = f"an int64 permutation of shape [{weight.shape[0]}] on {weight.device}"
            raise InputError("vocab_order", expected, _described(order))
    return options


def _renamed(options: EngineOptions) -> EngineOptions:
    """Accept `word_order`, the former name of `vocab_order`."""
    if "word_order" not in options:
        return options
    if "vocab_order" in options:
        raise InputError("word_order", "`vocab_order` alone, its new name", "both")
    warnings.warn(
        "`word_order` is now called `vocab_order`; version 0.3 removes the old name",
        DeprecationWarning,
        stacklevel=4,
    )
    order = options["word_order"]
    kept: EngineOptions = {**options, "vocab_order": order}
    del kept["word_order"]
    return kept
