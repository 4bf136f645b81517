"""What a source of rewards is given, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..data import MAX_REWARD, Prompt, Response
from ..errors import DataError, InputError


@dataclass(frozen=True)
class Candidate:
    """A response to be rewarded.

    where: names its record in messages. columns: the other columns of its record, such as a
        reference answer that a rule compares with. finished: False if sampling cut it.
    """

    prompt: Prompt
    response: Response
    where: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    finished: bool = True


class Scorer(Protocol):
    """A source of rewards."""

    def describe(self) -> dict[str, Any]:
        """Return what identifies this source, as JSON: its kind, model or function, settings.

        It is recorded beside the rewards, and a scoring that is resumed must have the same.
        """
        ...

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return one finite number per candidate, in order.

        Raises:
            UnscoredError: a candidate got none; the message names its record.
        """
        ...


class UnscoredError(DataError):
    """Some candidates got no reward; says so of the first.

    found: per candidate its reward, or the error that says why it has none.
    """

    def __init__(self, found: Sequence[float | DataError]) -> None:
        self.found = list(found)
        first = next(one for one in found if isinstance(one, DataError))
        super().__init__(first.where, str(first).removeprefix(f"{first.where}: ").rstrip("."))


def attempt(scorer: Scorer, candidates: Sequence[Candidate]) -> list[float | DataError]:
    """Return per candidate its reward, or the error that says why it has none."""
    try:
        return [*scorer.score(candidates)]
    except UnscoredError as error:
        return error.found


def attempt_twice(scorer: Scorer, candidates: Sequence[Candidate]) -> list[float | DataError]:
    """Return what `attempt` does, but ask again about candidates that got no reward.

    Raises:
        InputError: the scorer returned more or fewer values than it was given candidates.
        UnscoredError: it returned a value that is no reward, such as NaN.
    """
    found = _attempt_checked(scorer, candidates)
    failed = [place for place, one in enumerate(found) if isinstance(one, DataError)]
    if failed:
        again = _attempt_checked(scorer, [candidates[place] for place in failed])
        for place, one in zip(failed, again, strict=True):
            found[place] = one
    return found


def _attempt_checked(scorer: Scorer, candidates: Sequence[Candidate]) -> list[float | DataError]:
    found = attempt(scorer, candidates)
    if len(found) != len(candidates):
        expected = f"a source of rewards that returns {len(candidates)} numbers, one for each"
        names = f"{candidates[0].where} to {candidates[-1].where}"
        raise InputError("scorer", expected, f"{len(found)} of them for {names}")
    pairs = zip(candidates, found, strict=True)
    scored = [(one, value) for one, value in pairs if not isinstance(value, DataError)]
    checked([one for one, _ in scored], [value for _, value in scored])
    return [value if isinstance(value, DataError) else float(value) for value in found]


def checked(candidates: Sequence[Candidate], found: Sequence[float | DataError]) -> list[float]:
    """Return the rewards if each candidate has a finite one.

    Raises:
        UnscoredError: one has an error in place of a reward, or one that data may not hold.
    """
    pairs = zip(candidates, found, strict=True)
    results = [_check(candidate.where, one) for candidate, one in pairs]
    rewards = [one for one in results if not isinstance(one, DataError)]
    if len(rewards) < len(results):
        raise UnscoredError(results)
    return rewards


def _check(where: str, reward: float | DataError) -> float | DataError:
    if isinstance(reward, DataError):
        return reward
    if not math.isfinite(reward):
        return DataError(where, f"its reward is {reward}, not a finite number")
    if abs(reward) > MAX_REWARD:
        return DataError(where, f"its reward is {reward:g}, larger than {MAX_REWARD:,} in size")
    return reward
