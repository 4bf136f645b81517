"""Shapes of records that hold a pair of responses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .drafts import Draft, find_prompt, sharegpt_messages, transcript
from .messages import is_absent, show, to_python
from .numbers import as_float, parse_number

if TYPE_CHECKING:
    from .shapes import ShapeOptions

Columns = Mapping[str, Any]

# Columns of the scores of the chosen and of the rejected response.
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)


def pair(where: str, row: Columns, options: ShapeOptions) -> Draft:
    """Read TRL's pairs; without a prompt the answers begin with it."""
    answers = {name: _one_as_list(row[name]) for name in ("chosen", "rejected")}
    prompt = find_prompt(where, row)
    if is_absent(prompt) and all(isinstance(one, str) for one in answers.values()):
        prompt, answers = _shared_words(answers)
    return _scored(where, row, prompt, answers)


def argilla(where: str, row: Columns, options: ShapeOptions) -> Draft:
    answers = {name: row[name] for name in ("chosen_response", "rejected_response")}
    return _scored(where, row, find_prompt(where, row), answers)


def transcripts(where: str, row: Columns, options: ShapeOptions) -> Draft:
    """Read Anthropic's HH: transcripts of turns of `Human` and `Assistant`."""
    answers = {name: transcript(where, name, row[name]) for name in ("chosen", "rejected")}
    return _scored(where, row, None, answers)


def sharegpt(where: str, row: Columns, options: ShapeOptions) -> Draft:
    """Read LLaMA-Factory's pairs: a conversation, and its two continuations."""
    prompt = sharegpt_messages(where, "conversations", row["conversations"])
    answers: dict[str, object] = {
        name: sharegpt_messages(where, name, _one_as_list(row[name]))
        for name in ("chosen", "rejected")
    }
    return _scored(where, row, prompt, answers)


def safe_rlhf(where: str, row: Columns, options: ShapeOptions) -> Draft:
    best = _choice(where, row, "better_response_id", (0, 1))
    answers = {name: row[name] for name in ("response_0", "response_1")}
    return Draft(row.get("prompt"), answers, preferred=[best == 0, best == 1])


def shp(where: str, row: Columns, options: ShapeOptions) -> Draft:
    first = _choice(where, row, "labels", (0, 1))
    answers = {name: row[name] for name in ("human_ref_A", "human_ref_B")}
    scores = [row.get(name) for name in ("score_A", "score_B")]
    rewards = None if all(score is None for score in scores) else scores
    return Draft(row.get("history"), answers, rewards, [first == 1, first == 0])


def helpsteer3(where: str, row: Columns, options: ShapeOptions) -> Draft:
    """Read HelpSteer3: a preference below 0 is for the first response."""
    preference = parse_number(where, "`overall_preference`", row["overall_preference"])
    if preference == 0:
        raise DataError(where, "`overall_preference` is 0: its responses have no order")
    answers = {name: row[name] for name in ("response1", "response2")}
    return Draft(row.get("context"), answers, preferred=[preference < 0, preference > 0])


def _scored(where: str, row: Columns, prompt: object, answers: Mapping[str, object]) -> Draft:
    for names in SCORES:
        scores = [to_python(row.get(name)) for name in names]
        if any(score is not None for score in scores):
            return Draft(prompt, answers, scores, [True, False])
    return Draft(prompt, answers, preferred=[True, False])


def _choice(where: str, row: Columns, column: str, choices: tuple[int, int]) -> int:
    value = as_float(to_python(row[column]))
    if value not in choices:
        expected = " or ".join(map(str, choices))
        raise DataError(where, f"`{column}` is {show(row[column])}, not {expected}")
    return int(value)


def _one_as_list(answer: object) -> object:
    """Return a single message as a conversation."""
    return [answer] if isinstance(answer, Mapping) else to_python(answer)


def _shared_words(answers: Mapping[str, Any]) -> tuple[str, dict[str, object]]:
    """Split two texts after the words that both begin with; each keeps one word at least."""
    chosen, rejected = (re.findall(r"\s*\S+|\s+$", answer) for answer in answers.values())
    pairs = list(zip(chosen, rejected, strict=False))[: min(len(chosen), len(rejected)) - 1]
    shared = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return shared, {name: answer[len(shared) :] for name, answer in answers.items()}
