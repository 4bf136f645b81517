"""Records of preference data, and the report of how they were loaded."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

import numpy

from ..errors import DataError, InputError
from .messages import Prompt, Response

BadRows = Literal["raise", "skip"]
In = TypeVar("In")
Out = TypeVar("Out")


class NoRowsError(DataError):
    """None of the records can be used; the reasons were reported."""


@dataclass(frozen=True)
class SampledTokens:
    """Token ids of a prompt and of each response, as a policy sampled them.

    old_logps: per response, the log-prob of each of its tokens under that policy, in nats.
    logp_temperature: what divided the logits that these are of.
    """

    prompt_ids: list[int]
    response_ids: list[list[int]]
    old_logps: list[list[float]] | None = None
    logp_temperature: float = 1.0


@dataclass(frozen=True)
class Record:
    """One prompt with its responses.

    prompt: a text, or messages; empty for a plain text to be learnt as a whole.
    responses: texts, or lists of messages that begin and end with an assistant's; of such a list
        the assistant's messages are scored, and what stands between them is not. Empty where no
        response is required and none is given.
    rewards: one finite number per response, or None where the responses have no scores.
    preferred: one mark per response, True where it is the chosen one of a pair or desirable; None:
        the responses of the highest reward are preferred.
    where: names the record in messages, for example ``train.jsonl:12``.
    gold, gold_reward: the gold answer (GRAO, TPO), and its reward where it is known.
    ref_rewards: rewards of responses that the reference sampled to this prompt (QRPO, A*-PO).
    reward_ensemble: per reward model, one reward per response (pessimistic RPO).
    finished: one mark per response, False where sampling cut it: it is learnt without a token that
        ends it. None: all end.
    margin: of a pair, by how much a reward model is to prefer the chosen response.
    tools: descriptions of functions, for the chat template.
    sampled: the tokens that a policy sampled; they are trained on as they are, and the texts of the
        responses are not encoded again.
    """

    prompt: Prompt
    responses: list[Response]
    rewards: list[float] | None
    where: str
    preferred: list[bool] | None = None
    gold: Response | None = None
    gold_reward: float | None = None
    ref_rewards: list[float] | None = None
    reward_ensemble: list[list[float]] | None = None
    tools: list[dict[str, Any]] | None = None
    sampled: SampledTokens | None = None
    margin: float | None = None
    finished: list[bool] | None = None


class Repeats:
    """Counts equal values by their 64-bit hashes: 8 bytes a value."""

    def __init__(self) -> None:
        self._hashes: array[int] = array("Q")

    def add(self, value: object) -> None:
        self._hashes.append(_hash(value))

    def counts(self) -> list[int]:
        """Return how often each value occurs that occurs more than once."""
        hashes = numpy.array(self._hashes, numpy.uint64)
        _, counts = numpy.unique(hashes, return_counts=True)
        return [int(count) for count in counts[counts > 1]]


@dataclass
class DataReport:
    """Counts of what loading did; nothing is dropped without being counted here.

    shapes: number of records that were read, by the names of their shapes.
    """

    rows: int = 0
    responses: int = 0
    responses_dropped: int = 0
    responses_truncated: int = 0
    responses_unfinished: int = 0
    rows_without_pair: int = 0
    responses_beside_pair: int = 0
    rows_all_preferred: int = 0
    rows_gold_too_long: int = 0
    rows_without_label: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    _records: Repeats = field(default_factory=Repeats, repr=False)
    _prompts: Repeats = field(default_factory=Repeats, repr=False)
    _repeats_before: tuple[int, int] = (0, 0)

    def count(self, shape: str, record: Record) -> None:
        """Count a record that was read."""
        self.shapes[shape] += 1
        told = (record.prompt, record.responses, record.rewards, record.preferred, record.tools)
        self._records.add(told)
        self._prompts.add(record.prompt)

    @property
    def duplicates(self) -> int:
        """Number of records that are the same as an earlier one."""
        return self._repeats_before[0] + sum(number - 1 for number in self._records.counts())

    @property
    def repeated_prompts(self) -> int:
        """Number of prompts that occur in several records."""
        return self._repeats_before[1] + len(self._prompts.counts())

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON, for `from_dict`."""
        public = {one.name: getattr(self, one.name) for one in fields(self) if one.name[0] != "_"}
        return {**public, "repeats": [self.duplicates, self.repeated_prompts]}

    @classmethod
    def from_dict(cls, counts: Mapping[str, Any]) -> DataReport:
        """Return the report that `as_dict` described."""
        public = {name: value for name, value in counts.items() if name != "repeats"}
        before = tuple(counts["repeats"])
        return cls(**public | {"shapes": Counter(counts["shapes"])}, _repeats_before=before)

    def describe(self) -> str:
        """Return the counts as one line for the log."""
        parts = [f"{self.rows} prompts with {self.responses} responses"]
        if self.shapes and not self.responses:
            parts = [f"{self.shapes.total()} records read"]
        notes = {
            "responses dropped (do not fit max_length)": self.responses_dropped,
            "responses truncated": self.responses_truncated,
            "responses not finished (no token that ends them)": self.responses_unfinished,
            "prompts without a pair (all rewards equal, or fewer than two responses)": (
                self.rows_without_pair
            ),
            "responses left out (the loss takes the best and the worst of each prompt)": (
                self.responses_beside_pair
            ),
            "prompts without labels (all rewards equal)": len(self.rows_without_label),
            "prompts whose rewards are all equal (every response counts as preferred)": (
                self.rows_all_preferred
            ),
            "prompts dropped (the gold answer does not fit max_length)": self.rows_gold_too_long,
            "bad records skipped": len(self.skipped),
            "records that repeat another one": self.duplicates,
            "prompts that occur in several records": self.repeated_prompts,
        }
        if self.shapes:
            names = ", ".join(f"{name} {count}" for name, count in self.shapes.most_common())
            parts.append(f"shapes: {names}")
        return "; ".join(parts + [f"{count} {what}" for what, count in notes.items() if count])


def keep_good(
    items: Iterable[In], convert: Callable[[In], Out], report: DataReport, bad_rows: BadRows
) -> Iterator[Out]:
    """Yield ``convert(item)`` of each item; raise its `DataError`, or note it and skip the item."""
    if bad_rows not in ("raise", "skip"):
        raise InputError("bad_rows", "'raise' or 'skip'", repr(bad_rows))
    for item in items:
        try:
            yield convert(item)
        except DataError as error:
            if bad_rows == "raise":
                raise
            report.skipped.append(str(error))


def split_records(
    records: Sequence[Record], eval_fraction: float
) -> tuple[list[Record], list[Record]]:
    """Split into training and held-out records by a hash of the prompt: none is on both sides.

    Args:
        records: what `load_records` returns.
        eval_fraction: approximate share of the prompts that are held out, in [0, 1).

    Returns:
        The training and the held-out records, in order.

    Raises:
        InputError: `eval_fraction` is out of range.
    """
    check_fraction(eval_fraction)
    held_out = [is_held_out(record.prompt, eval_fraction) for record in records]
    train = [record for record, out in zip(records, held_out, strict=True) if not out]
    return train, [record for record, out in zip(records, held_out, strict=True) if out]


def check_fraction(eval_fraction: float) -> None:
    if not 0.0 <= eval_fraction < 1.0:
        raise InputError("eval_fraction", "a number in [0, 1)", eval_fraction)


def is_held_out(prompt: Prompt, eval_fraction: float) -> bool:
    return _hash(prompt) / 2**64 < eval_fraction


def _hash(value: object) -> int:
    """Return the first 64 bits of SHA-256 of a value as JSON."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "big")
