"""Options of how columns of records are read, which every command that reads records has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ..data import ShapeOptions
from ..errors import InputError

Value = TypeVar("Value")


@dataclass
class ShapeArguments:
    """How the columns of the records are read."""

    columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "New names of columns: `--columns question=prompt answer=completion` reads the "
            "column question as prompt, and answer as completion."
        },
    )
    shape: str | None = field(
        default=None,
        metadata={"help": "Shape of all records (docs/data.md); else told by their columns."},
    )
    label_rewards: list[float] | None = field(
        default=None,
        metadata={
            "help": "Rewards of preferred and of other responses, for pairs and labels without "
            "rewards: `--label_rewards 1 0`. Else these have none."
        },
    )
    rank_rewards: bool = field(
        default=False,
        metadata={"help": "Take minus the rank of ranked responses as their reward; else none."},
    )
    score_weights: list[str] | None = field(
        default=None,
        metadata={
            "help": "Weight of each score in a reward, where responses have several scores: "
            "`--score_weights helpfulness=0.65 correctness=0.8` (default: helpfulness alone, or "
            "overall_score)."
        },
    )

    def options(self) -> ShapeOptions:
        """Return them as the library takes them.

        Raises:
            InputError: a value has another form than stated, or is out of range.
        """
        labels, weights = self.label_rewards, self.score_weights
        if labels is not None and len(labels) != 2:
            expected = "two numbers, the rewards of preferred and of other responses"
            raise InputError("label_rewards", expected, " ".join(f"{one:g}" for one in labels))
        return ShapeOptions(
            columns=None if self.columns is None else _pairs("columns", self.columns, str),
            shape=self.shape,
            label_rewards=None if labels is None else (labels[0], labels[1]),
            rank_rewards=self.rank_rewards,
            weights=None if weights is None else _pairs("score_weights", weights, float),
        )


def _pairs(option: str, given: Sequence[str], convert: Callable[[str], Value]) -> dict[str, Value]:
    """Read ``name=value`` items."""
    found: dict[str, Value] = {}
    what = "number" if convert is float else "new_name"
    for item in given:
        name, _, text = item.partition("=")
        try:
            value = convert(text)
        except ValueError:
            value = None
        if not (name and text) or value is None:
            raise InputError(option, f"items name={what}, with a space between two", repr(item))
        if name in found:
            raise InputError(option, "each name once", f"{name!r} twice")
        found[name] = value
    return found
