"""Read preference data with explicit rewards into checked records."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..errors import DataError, InputError
from .messages import Prompt, Response, is_absent, join_prompt, parse_answers, show, to_python
from .sources import Row, read_rows

BadRows = Literal["raise", "skip"]
In = TypeVar("In")
Out = TypeVar("Out")

# The norm of the gradient must be finite in fp32, or clipping by it makes every weight NaN. A
# squared loss has gradients of up to 2 |reward| per token; times hidden values of 100 and 10,000
# tokens they are 2e12 at this bound, and the squares of 1e10 of them sum to 4e34, below 3.4e38.
# Also, fp32 still tells rewards apart here that differ by 0.1.
MAX_REWARD = 1_000_000

_SHAPES = 'Records are {"prompt", "responses", "rewards"} or {"prompt", "chosen", "rejected"}.'

# Columns that change the model's input in other trainers, and would be ignored here.
_REFUSED = (
    *("tools", "functions", "tool_calls", "function_call", "documents", "chat_template_kwargs"),
    *("image", "images", "video", "videos", "audio", "audios", "system", "system_prompt"),
)


@dataclass(frozen=True)
class SampledTokens:
    """Token ids of a prompt and of each response, as a policy sampled them.

    old_logps: per response, the log-prob of each of its tokens under that policy, in nats.
    """

    prompt_ids: list[int]
    response_ids: list[list[int]]
    old_logps: list[list[float]] | None = None


@dataclass(frozen=True)
class Record:
    """One prompt with its responses.

    prompt: a text, or messages; empty for a plain text to be learnt as a whole.
    responses: texts, or lists of messages that begin and end with an assistant's; of such a list
        the assistant's messages are scored, and what stands between them is not.
    rewards: one finite number per response, or None where the responses have no scores.
    preferred: one mark per response, True where it is the chosen one of a pair or desirable; None:
        the responses of the highest reward are preferred.
    where: names the record in messages, for example ``train.jsonl:12``.
    gold, gold_reward: the gold answer (GRAO, TPO), and its reward where it is known.
    ref_rewards: rewards of responses that the reference sampled to this prompt (QRPO, A*-PO).
    reward_ensemble: per reward model, one reward per response (pessimistic RPO).
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


@dataclass
class DataReport:
    """Counts of what loading did; nothing is dropped without being counted here."""

    rows: int = 0
    responses: int = 0
    responses_dropped: int = 0
    responses_truncated: int = 0
    rows_without_pair: int = 0
    responses_beside_pair: int = 0
    rows_all_preferred: int = 0
    rows_without_label: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Return the counts as one line for the log."""
        parts = [f"{self.rows} prompts with {self.responses} responses"]
        notes = {
            "responses dropped (do not fit max_length)": self.responses_dropped,
            "responses truncated": self.responses_truncated,
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
            "bad records skipped": len(self.skipped),
        }
        return "; ".join(parts + [f"{count} {what}" for what, count in notes.items() if count])


def load_records(
    source: str | Path | Iterable[Any],
    *,
    limit: int | None = None,
    bad_rows: BadRows = "raise",
    report: DataReport | None = None,
) -> list[Record]:
    """Read and check records with rewards, or TRL's pairs.

    Args:
        source: a ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` path, a list of such paths, a
            `datasets` object, a data frame of pandas, or any iterable of mappings.
        limit: read at most this many records; None: all.
        bad_rows: "raise" a `DataError` at the first bad record, or "skip" it and note it in
            `report`.
        report: counts are added to it.

    Returns:
        At least one record.

    Raises:
        DataError: a record is bad, a file cannot be read to its end, or no record is usable.
        InputError: an argument has another value than stated.
    """
    if limit is not None and limit < 1:
        raise InputError("limit", "at least 1 record, or None for all", limit)
    report = DataReport() if report is None else report
    before = len(report.skipped)
    records = list(keep_good(islice(read_rows(source), limit), _read_record, report, bad_rows))
    if not records:
        skipped = report.skipped[before:]
        if not skipped:
            raise DataError(_name(source), "holds no usable record: it is empty")
        problem = f"holds no usable record: all {len(skipped)} are bad"
        raise DataError(_name(source), problem, f"The first is {skipped[0]}")
    return records


def iter_raw(
    source: str | Path | Iterable[Any],
    *,
    limit: int | None = None,
    bad_rows: BadRows = "raise",
    report: DataReport | None = None,
) -> Iterator[tuple[Mapping[str, Any], Record]]:
    """Yield each record with the columns that it was read from; it may have no rewards.

    Args:
        source, limit, bad_rows, report: as of `load_records`.

    Yields:
        Columns and record.

    Raises:
        DataError, InputError: as `load_records` does.
    """
    report = DataReport() if report is None else report
    return keep_good(islice(read_rows(source), limit), _read_columns, report, bad_rows)


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
    if not 0.0 <= eval_fraction < 1.0:
        raise InputError("eval_fraction", "a number in [0, 1)", eval_fraction)
    held_out = [_prompt_position(record.prompt) < eval_fraction for record in records]
    train = [record for record, out in zip(records, held_out, strict=True) if not out]
    return train, [record for record, out in zip(records, held_out, strict=True) if out]


def _prompt_position(prompt: Prompt) -> float:
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _name(source: object) -> str:
    return str(source) if isinstance(source, (str, Path)) else type(source).__name__


def _read_record(row: Row) -> Record:
    _, record = _read_columns(row)
    if record.rewards is None and record.preferred is None:
        raise DataError(record.where, "`rewards` missing", "Score the responses first.")
    return record


def _read_columns(row: Row) -> tuple[Mapping[str, Any], Record]:
    where, read = row
    columns: Any = read()
    record = _parse_row(where, columns)
    margin = to_python(columns.get("margin"))
    if is_absent(margin):
        return columns, record
    if not math.isfinite(_as_float(margin)):
        raise DataError(where, f"`margin` is {show(margin)}, not a finite number")
    return columns, replace(record, margin=_as_float(margin))


def _parse_row(where: str, row: object) -> Record:
    if not isinstance(row, Mapping):
        problem = f"a record must be an object, got {type(row).__name__}"
        raise DataError(where, problem, f"{_SHAPES} A dataset gives them with_format(None).")
    _check_columns(where, row)
    paired = "chosen" in row and "rejected" in row
    if "responses" in row and not (paired and is_absent(row["responses"])):
        return _parse_native(where, row)
    if paired:
        return _parse_paired(where, row)
    problem = "neither `responses` nor `chosen` and `rejected` among its columns"
    raise DataError(where, f"{problem} {show(list(row), 200)}", _SHAPES)


def _check_columns(where: str, row: Mapping[str, Any]) -> None:
    """Raise if a column would be ignored though it belongs to the prompt or the responses."""
    for name in _REFUSED:
        if not is_absent(row.get(name)):
            problem = f"the column `{name}` would be ignored"
            raise DataError(where, problem, "Put what it says into `prompt`, or remove the column.")
    shapes = [("chosen", "rejected"), ("responses", "rewards")]
    paired, native = ([key for key in keys if not is_absent(row.get(key))] for keys in shapes)
    if paired and native:
        raise DataError(
            where, f"`{native[0]}` beside `{paired[0]}`: a record has one of them", _SHAPES
        )


def _parse_native(where: str, row: Mapping[str, Any]) -> Record:
    responses = to_python(row["responses"])
    if not isinstance(responses, (list, tuple)):
        raise DataError(where, f"`responses` must be a list, got {type(responses).__name__}")
    if not responses:
        raise DataError(where, "`responses` is empty")
    answers = {f"responses[{i}]": response for i, response in enumerate(responses)}
    turns, texts = parse_answers(where, answers)
    prompt = join_prompt(where, row.get("prompt"), turns)
    rewards = row.get("rewards")
    if rewards is not None:
        rewards = _parse_rewards(where, rewards, len(texts))
    return Record(prompt, [*texts], rewards, where, gold=row.get("gold"))


def _parse_paired(where: str, row: Mapping[str, Any]) -> Record:
    """Parse TRL's pairs; conversations may hold the prompt in `chosen` and `rejected`."""
    turns, texts = parse_answers(where, {key: row[key] for key in ("chosen", "rejected")})
    prompt = join_prompt(where, row.get("prompt"), turns)
    scores = [row.get("score_chosen"), row.get("score_rejected")]
    if all(score is None for score in scores):
        return Record(prompt, [*texts], None, where, preferred=[True, False])
    return Record(
        prompt, [*texts], _parse_rewards(where, scores, 2), where, preferred=[True, False]
    )


def _parse_rewards(where: str, rewards: object, count: int) -> list[float]:
    rewards = to_python(rewards)
    if not isinstance(rewards, (list, tuple)):
        raise DataError(where, f"`rewards` must be a list, got {type(rewards).__name__}")
    if len(rewards) != count:
        raise DataError(where, f"{count} responses but {len(rewards)} rewards")
    return [_parse_reward(where, number, reward) for number, reward in enumerate(rewards)]


def _parse_reward(where: str, number: int, given: object) -> float:
    reward = _as_float(to_python(given))
    if not math.isfinite(reward):
        raise DataError(where, f"reward {number} is {show(given)}, not a finite number")
    if abs(reward) > MAX_REWARD:
        problem = f"reward {number} is {show(given)}, larger than {MAX_REWARD:,} in size"
        raise DataError(where, problem, "Rescale the rewards, for example to a deviation of 1.")
    return reward


def _as_float(value: object) -> float:
    """Return the value as a float, NaN if it is no real number."""
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return sys.float_info.max  # beyond MAX_REWARD, as the value is
    except ValueError:  # a signalling NaN of Decimal
        return math.nan
