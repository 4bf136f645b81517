"""Batches of sequences: which positions are scored, and how token log-probs become sums."""

from .batch import IGNORE, SequenceBatch

__all__ = ["IGNORE", "SequenceBatch"]
