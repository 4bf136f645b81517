"""Point-wise reward regression: RAO's siblings, which differ in how they know log Z."""

from __future__ import annotations

from ._spec import LossSpec

ROWS: tuple[LossSpec, ...] = ()
