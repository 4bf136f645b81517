"""The tile walk: forward, backward, and what they plan by."""

from .backward import Needs, differentiate
from .forward import Scores, Statistics, score
from .plan import tile_width, tiles, workspace_bytes
from .sparsity import (
    Sparsity,
    order_by_affinity,
    order_by_sample,
    sample_step,
    take,
    word_affinity,
)
from .work import Work, record_work

__all__ = [
    "Needs",
    "Scores",
    "Sparsity",
    "Statistics",
    "Work",
    "differentiate",
    "order_by_affinity",
    "order_by_sample",
    "record_work",
    "sample_step",
    "score",
    "take",
    "tile_width",
    "tiles",
    "word_affinity",
    "workspace_bytes",
]
