"""The plan of a call, and its two walks over vocabulary tiles: forward and backward."""

from .backward import Needs, differentiate
from .forward import Scores, Statistics, score
from .ordering import Sample, evenly_spaced, order_by_sample, order_words, sample, sample_step
from .plan import Plan, make_plan
from .sparsity import Sparsity, take
from .work import Work, record_work

__all__ = [
    "Needs",
    "Plan",
    "Sample",
    "Scores",
    "Sparsity",
    "Statistics",
    "Work",
    "differentiate",
    "evenly_spaced",
    "make_plan",
    "order_by_sample",
    "order_words",
    "record_work",
    "sample",
    "sample_step",
    "score",
    "take",
]
