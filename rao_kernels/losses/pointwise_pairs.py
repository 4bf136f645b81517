"""Pair losses with a reference that are no function of the margin alone."""

from __future__ import annotations

from ._spec import LossSpec

ROWS: tuple[LossSpec, ...] = ()
