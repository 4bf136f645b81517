"""What a source of rewards is given, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..data import Prompt, Response


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
            DataError: a candidate got none; the message names its record.
        """
        ...
