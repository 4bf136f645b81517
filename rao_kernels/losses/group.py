"""Losses that couple the K responses of a prompt through a softmax."""

from __future__ import annotations

from ._spec import LossSpec

ROWS: tuple[LossSpec, ...] = ()
