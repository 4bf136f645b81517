"""Policy gradients with importance ratios, their clips and their normalisers."""

from __future__ import annotations

from ._spec import LossSpec

ROWS: tuple[LossSpec, ...] = ()
