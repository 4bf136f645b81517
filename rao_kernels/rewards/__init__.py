"""Rewards for responses: reward models, rules, judges, implicit rewards of two models."""

from .interface import Candidate, Scorer

__all__ = ["Candidate", "Scorer"]
