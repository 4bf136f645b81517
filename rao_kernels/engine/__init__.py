"""The plan of a call, and the forward and the backward walk over vocabulary tiles."""

from .backward import Needs, differentiate
from .forward import score
from .plan import Plan, make_plan
from .sparsity import Sparsity, take
from .statistics import Scores, Statistics
from .vocab_order import Sample, evenly_spaced, order_by_sample, order_vocabulary, sample
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
    "order_vocabulary",
    "record_work",
    "sample",
    "score",
    "take",
]
