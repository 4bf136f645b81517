"""The tile walk: forward, backward, and what they plan by."""

from .backward import Needs, differentiate
from .forward import Scores, Statistics, score
from .plan import tile_width, tiles, workspace_bytes
from .work import Work, record_work

__all__ = [
    "Needs",
    "Scores",
    "Statistics",
    "Work",
    "differentiate",
    "record_work",
    "score",
    "tile_width",
    "tiles",
    "workspace_bytes",
]
