"""The backends (two tile operations each), their order per device, and the choice among them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from .. import _env
from ..errors import BackendError
from . import cpu, cuda, eager, triton
from .tiles import (
    GROUP,
    Gradients,
    Head,
    Precision,
    RetainedSlot,
    RetainedTile,
    RowGradients,
    RowState,
    Tile,
    Traits,
    precision_of,
)

__all__ = [
    "GROUP",
    "Backend",
    "Gradients",
    "Head",
    "Precision",
    "RetainedSlot",
    "RetainedTile",
    "RowGradients",
    "RowState",
    "Tile",
    "Traits",
    "get",
    "precision_of",
    "reasons",
    "select",
]

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """The interface of a backend module. The engine walks the tiles and validates arguments."""

    NAME: str

    def supports(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return None if the backend runs `dtype` operands on `device`, else the reason why not."""

    def traits(self, device_type: str) -> Traits:
        """Return the properties that the plan of a call on such a device depends on."""

    def retained_bytes(self, rows: int, width: int, precision: Precision) -> int:
        """Return the bytes of the slot of a tile of `width` entries.

        Plain arithmetic: under a compiler's fake tensors `rows` is symbolic.
        """

    def scratch(self, head: Head, width: int, *, backward: bool) -> Sequence[Tensor]:
        """Return buffers for every tile (of at most `width` entries) of one pass.

        Passes over fewer rows may use them too.
        """

    def begin(self, head: Head, scratch: Sequence[Tensor], *, backward: bool) -> None:
        """Prepare `scratch` before the first tile of a pass, and when its rows have changed."""

    def score_tile(
        self,
        head: Head,
        tile: Tile,
        state: RowState,
        retained: RetainedSlot | None,
        scratch: Sequence[Tensor],
        first: bool,
    ) -> None:
        """Fold a tile's logits into `state`; fill all of `retained` where given.

        first: `state` is uninitialised, and the tile writes all of it.
        """

    def grad_tile(
        self,
        head: Head,
        tile: Tile,
        rows: RowGradients,
        retained: RetainedSlot | None,
        out: Gradients,
        scratch: Sequence[Tensor],
    ) -> None:
        """Compute a tile's logit gradient (from `retained` or anew); put its products in `out`."""


BACKENDS: dict[str, Backend] = {module.NAME: module for module in (cpu, eager, triton, cuda)}
ORDER = {"cpu": ("cpu", "eager"), "cuda": ("triton", "cuda", "eager")}


def get(name: str) -> Backend:
    """Return the backend of a name that `select` returned."""
    return BACKENDS[name]


def reasons(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Return for each backend None where it would run, else the reason why it would not."""
    return {name: backend.supports(device, dtype) for name, backend in BACKENDS.items()}


@cache
def _report_fallback(name: str, reason: str) -> None:
    logger.warning("backend %r is not used: %s", name, reason)


def select(name: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """Return the backend to run: `name`, else ``RAO_KERNELS_BACKEND``, else the device's first.

    The device's first is the first of `ORDER` that supports the problem.

    Raises:
        BackendError: the backend asked for does not exist, or cannot run the problem.
    """
    asked = name or _env.backend()
    if asked is not None:
        if asked not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise BackendError(f"backend {asked!r} does not exist; choose one of {known}")
        if (reason := BACKENDS[asked].supports(device, dtype)) is not None:
            why = reasons(device, dtype)
            others = "; ".join(f"{n}: {r or 'would run'}" for n, r in why.items() if n != asked)
            raise BackendError(f"backend {asked!r} cannot run this: {reason}. Others: {others}")
        return asked
    for candidate in ORDER.get(device.type, ("eager",)):
        if (reason := BACKENDS[candidate].supports(device, dtype)) is None:
            return candidate
        if dtype != torch.float64:
            _report_fallback(candidate, reason)
    missing = "; ".join(f"{n}: {r}" for n, r in reasons(device, dtype).items())
    raise BackendError(f"no backend runs {dtype} on {device}. {missing}")
