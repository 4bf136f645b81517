"""`RecordSource`: where records are read from, how, and which part of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..errors import InputError
from .records import Record, check_fraction, is_held_out
from .shapes import ShapeOptions


class Conversion(Protocol):
    """Changes each record as it is read."""

    @property
    def name(self) -> str:
        """Two conversions of one name do the same."""
        ...

    def __call__(self, record: Record) -> Record:
        """Return the changed record.

        Raises:
            DataError: it cannot be changed so.
        """
        ...


@dataclass(frozen=True)
class RecordSource:
    """Records that are read anew, one after another, by each pass over them.

    Whatever reads records takes it in place of the source itself, such as `RAOTrainer`'s
    `train_dataset`.

    source: as of `load_records`.
    options: how columns are read.
    limit: the first so many records; None: all.
    part: "train" and "held_out" are the two parts that `split_records` makes of the records by
        `eval_fraction`, "all" is both.
    eval_fraction: approximate share of the prompts in the held-out part, in [0, 1).
    convert: changes the records that are read; None: they stay as they are.

    Raises:
        InputError: a value is another than stated.
    """

    source: Any
    options: ShapeOptions = field(default_factory=ShapeOptions)
    limit: int | None = None
    part: Literal["all", "train", "held_out"] = "all"
    eval_fraction: float = 0.0
    convert: Conversion | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError("limit", "at least 1 record, or None for all", self.limit)
        if self.part not in ("all", "train", "held_out"):
            raise InputError("part", "'all', 'train' or 'held_out'", repr(self.part))
        check_fraction(self.eval_fraction)

    def takes(self, record: Record) -> bool:
        """Return whether a record belongs to the part."""
        if self.part == "all":
            return True
        return is_held_out(record.prompt, self.eval_fraction) == (self.part == "held_out")

    def describe(self) -> dict[str, Any]:
        """Return, as JSON, everything but the source itself that the records depend on."""
        options, convert = self.options, self.convert
        return {
            "columns": None if options.columns is None else dict(options.columns),
            "shape": options.shape,
            "label_rewards": options.label_rewards,
            "rank_rewards": options.rank_rewards,
            "weights": None if options.weights is None else dict(options.weights),
            "responses_required": options.responses_required,
            "limit": self.limit,
            "part": self.part,
            "eval_fraction": self.eval_fraction,
            "convert": None if convert is None else convert.name,
        }
