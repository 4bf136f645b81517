"""Rewards for responses: reward models, rules, judges, implicit rewards of two models."""

from .annotation import AnnotateOptions, annotate
from .implicit import ImplicitScorer
from .interface import Candidate, Scorer, UnscoredError
from .judge import JUDGE_PROMPT, SCORE_PATTERN, Judge, JudgeScorer, Unanswered
from .judge_models import EndpointJudge, LocalJudge
from .reward_model import RewardEnsemble, RewardModelScorer
from .rule import RuleScorer
from .summary import RewardSummary, summarize

__all__ = [
    "JUDGE_PROMPT",
    "SCORE_PATTERN",
    "AnnotateOptions",
    "Candidate",
    "EndpointJudge",
    "ImplicitScorer",
    "Judge",
    "JudgeScorer",
    "LocalJudge",
    "RewardEnsemble",
    "RewardModelScorer",
    "RewardSummary",
    "RuleScorer",
    "Scorer",
    "Unanswered",
    "UnscoredError",
    "annotate",
    "summarize",
]
