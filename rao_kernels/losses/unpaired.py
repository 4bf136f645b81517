"""Losses on single responses with a label or a win probability."""

from __future__ import annotations

from ._spec import LossSpec

ROWS: tuple[LossSpec, ...] = ()
