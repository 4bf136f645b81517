"""The tile walk: forward, backward, and what they plan by."""

from .backward import Needs, differentiate
from .forward import Scores, Statistics, score
from .ordering import Sample, evenly_spaced, order_by_sample, order_words, sample, sample_step
from .plan import tile_width, tiles, workspace_bytes
from .sparsity import Sparsity, take
from .work import Work, record_work

__all__ = [
    "Needs",
    "Sample",
    "Scores",
    "Sparsity",
    "Statistics",
    "Work",
    "differentiate",
    "evenly_spaced",
    "order_by_sample",
    "order_words",
    "record_work",
    "sample",
    "sample_step",
    "score",
    "take",
    "tile_width",
    "tiles",
    "workspace_bytes",
]
