"""Shapes of records that hold all responses to a prompt as a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .drafts import Draft, as_mapping, find_prompt, numbered, objects, transcript
from .messages import as_list, is_absent, show, to_python
from .numbers import parse_number

if TYPE_CHECKING:
    from .shapes import ShapeOptions

Columns = Mapping[str, Any]


def native(where: str, row: Columns, options: ShapeOptions) -> Draft:
    responses = to_python(row["responses"])
    if not isinstance(responses, (list, tuple)):
        raise DataError(where, f"`responses` must be a list, got {type(responses).__name__}")
    if not responses and options.responses_required:
        raise DataError(where, "`responses` is empty")
    return Draft(row.get("prompt"), numbered("responses", responses), row.get("rewards"))


def all_generated(where: str, row: Columns, options: ShapeOptions) -> Draft:
    """Read on-policy samples with the scores of a reward model; `chosen`, `rejected` are two."""
    answers = as_list(where, "all_generated_responses", row["all_generated_responses"])
    scores = row.get("all_rm_scores")
    if is_absent(scores):
        scores = row.get("scores")
    rewards = as_list(where, "scores", scores)
    return Draft(row.get("prompt"), numbered("all_generated_responses", answers), rewards)


def ultrafeedback(where: str, row: Columns, options: ShapeOptions) -> Draft:
    """Read UltraFeedback; the system prompts of its completions are how these were sampled."""
    found = objects(where, row, "completions", "response")
    weights = options.weights or {"overall_score": 1.0}
    rewards = [
        sum(
            weight * _rating(where, f"completions[{number}]", one, name)
            for name, weight in weights.items()
        )
        for number, one in enumerate(found)
    ]
    answers = numbered("completions", [one["response"] for one in found])
    return Draft(row["instruction"], answers, rewards)


def _rating(where: str, place: str, completion: Columns, name: str) -> float:
    """Return a score of a completion, or the rating of an aspect, which is a text."""
    if name in completion:
        return parse_number(where, f"{place}.{name}", completion[name])
    aspects = as_mapping(where, f"{place}.annotations", completion.get("annotations"))
    if name not in aspects:
        raise DataError(where, f"`{place}` has neither a score nor an aspect {show(name)}")
    place = f"{place}.annotations.{name}.Rating"
    rating = as_mapping(where, place, aspects[name]).get("Rating")
    if isinstance(rating, str):
        try:
            rating = float(rating)
        except ValueError as error:
            raise DataError(where, f"{place} is {show(rating)}, not a finite number") from error
    return parse_number(where, place, rating)


def nemo_rl(where: str, row: Columns, options: ShapeOptions) -> Draft:
    found = objects(where, row, "completions", "completion")
    answers = numbered("completions", [one["completion"] for one in found])
    rewards = [one.get("reward") for one in found]
    if any(reward is not None for reward in rewards):
        return Draft(row["context"], answers, rewards)
    return _ranked(row["context"], answers, _ranks(where, "completions", found), options)


def distilabel(where: str, row: Columns, options: ShapeOptions) -> Draft:
    answers = as_list(where, "generations", row["generations"])
    rating = row.get("rating")
    if is_absent(rating):
        rating = row.get("ratings")
    rewards = as_list(where, "rating", rating)
    return Draft(find_prompt(where, row), numbered("generations", answers), rewards)


def nectar(where: str, row: Columns, options: ShapeOptions) -> Draft:
    found = objects(where, row, "answers", "answer")
    ranks = _ranks(where, "answers", found)
    prompt = to_python(row["prompt"])
    if isinstance(prompt, str) and prompt.lstrip().startswith("Human:"):
        turns = transcript(where, "prompt", prompt)
        if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
            del turns[-1]  # where the answer goes
        prompt = turns
    answers = numbered("answers", [one["answer"] for one in found])
    return _ranked(prompt, answers, ranks, options)


def _ranked(
    prompt: object, answers: dict[str, object], ranks: list[float], options: ShapeOptions
) -> Draft:
    rewards = [-rank for rank in ranks] if options.rank_rewards else None
    return Draft(prompt, answers, rewards, _best(ranks))


def _ranks(where: str, column: str, found: list[Columns]) -> list[float]:
    return [
        parse_number(where, f"{column}[{number}].rank", one.get("rank"))
        for number, one in enumerate(found)
    ]


def _best(ranks: list[float]) -> list[bool]:
    """Mark the answers of the lowest rank."""
    return [rank == min(ranks) for rank in ranks]
