"""Preference data with explicit rewards: files and datasets in, checked records out."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..errors import DataError, InputError, MissingDependencyError

Message = dict[str, str]
Prompt = str | list[Message]
BadRows = Literal["raise", "skip"]
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Record:
    """One prompt with its responses.

    rewards: one finite number per response, or None for a paired row without scores.
    preferred: position of the response a pair loss prefers; None = the highest reward.
    where: names the row in messages, for example ``train.jsonl:12``.
    """

    prompt: Prompt
    responses: list[str]
    rewards: list[float] | None
    where: str
    preferred: int | None = None


@dataclass
class DataReport:
    """What loading did with the rows; nothing is dropped without being counted here."""

    rows: int = 0
    responses: int = 0
    responses_dropped: int = 0
    responses_truncated: int = 0
    rows_without_pair: int = 0
    rows_without_label: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """One line for the log."""
        parts = [f"{self.rows} prompts with {self.responses} responses"]
        notes = {
            "responses dropped (do not fit max_length)": self.responses_dropped,
            "responses truncated": self.responses_truncated,
            "prompts without a pair (all rewards equal, or fewer than two responses)": (
                self.rows_without_pair
            ),
            "prompts without labels (all rewards equal)": len(self.rows_without_label),
            "bad rows skipped": len(self.skipped),
        }
        return "; ".join(parts + [f"{count} {what}" for what, count in notes.items() if count])


def load_records(
    source: str | Path | Sequence[Any] | Iterable[Mapping[str, Any]],
    *,
    limit: int | None = None,
    bad_rows: BadRows = "raise",
    report: DataReport | None = None,
) -> list[Record]:
    """Read and check native rows or TRL paired rows.

    source: a ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` path, a list of such paths, a `datasets`
    object, or any iterable of mappings. limit: read this many rows and no more.
    bad_rows: "raise" a `DataError` at the first bad row, or "skip" it and note it in `report`.
    """
    report = DataReport() if report is None else report
    rows = islice(_read_rows(source), limit)
    records = list(keep_good(rows, lambda row: _parse_row(*row), report, bad_rows))
    if not records:
        raise DataError(_name(source), "holds no usable row")
    return records


def keep_good(
    items: Iterable[In], convert: Callable[[In], Out], report: DataReport, bad_rows: BadRows
) -> Iterator[Out]:
    """Yield ``convert(item)``; `bad_rows` says whether a `DataError` is raised or noted."""
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
    """Training and held-out rows by a hash of the prompt: no prompt is on both sides."""
    if not 0.0 <= eval_fraction < 1.0:
        raise InputError("eval_fraction", "a number in [0, 1)", eval_fraction)
    held_out = [_prompt_position(record.prompt) < eval_fraction for record in records]
    train = [record for record, out in zip(records, held_out, strict=True) if not out]
    return train, [record for record, out in zip(records, held_out, strict=True) if out]


def _prompt_position(prompt: Prompt) -> float:
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _name(source: object) -> str:
    return Path(source).name if isinstance(source, (str, Path)) else type(source).__name__


def _read_rows(source: Any) -> Iterator[tuple[str, object]]:
    """(where, row) pairs of any supported source."""
    if isinstance(source, (str, Path)):
        yield from _read_file(Path(source))
        return
    for number, item in enumerate(source):
        if isinstance(item, (str, Path)):
            yield from _read_file(Path(item))
        else:
            yield f"row {number}", item


def _read_file(path: Path) -> Iterator[tuple[str, object]]:
    if not path.is_file():
        raise DataError(str(path), "no such file")
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _read_jsonl(path)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    else:
        raise DataError(str(path), "not a file this reads", "Use .jsonl, .jsonl.gz or .parquet.")


def _read_jsonl(path: Path) -> Iterator[tuple[str, object]]:
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path.name}:{number}", _Unparsed(line)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path.name}:{number + 1}", f"cannot be read ({error})") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, object]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "train") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield f"{path.name}:row {number}", row
                    number += 1
    except pyarrow.ArrowInvalid as error:
        raise DataError(path.name, f"not a Parquet file ({error})") from error


class _Unparsed(str):
    """A JSON line; parsed with the checks, so that a broken line is a bad row like any other."""


def _parse_row(where: str, row: object) -> Record:
    if isinstance(row, _Unparsed):
        try:
            row = json.loads(row)
        except json.JSONDecodeError as error:
            raise DataError(where, f"not valid JSON ({error})") from error
    if not isinstance(row, Mapping):
        raise DataError(where, f"a row must be an object, got {type(row).__name__}")
    if "responses" in row:
        return _parse_native(where, row)
    if "chosen" in row and "rejected" in row:
        return _parse_paired(where, row)
    raise DataError(
        where,
        f"neither `responses` nor `chosen` and `rejected` among its columns {sorted(row)}",
        'Rows are {"prompt", "responses", "rewards"} or {"prompt", "chosen", "rejected"}.',
    )


def _parse_native(where: str, row: Mapping[str, Any]) -> Record:
    prompt = _check_prompt(where, row.get("prompt"))
    responses = row["responses"]
    if not isinstance(responses, (list, tuple)):
        raise DataError(where, f"`responses` must be a list, got {type(responses).__name__}")
    if not responses:
        raise DataError(where, "no response")
    texts = [_response_text(where, f"responses[{i}]", item) for i, item in enumerate(responses)]
    rewards = row.get("rewards")
    if rewards is None:
        raise DataError(where, "`rewards` missing", "Score the responses first.")
    return Record(prompt, texts, _check_rewards(where, rewards, len(texts)), where)


def _parse_paired(where: str, row: Mapping[str, Any]) -> Record:
    """TRL's preference rows; conversational ones may hold the prompt in `chosen`, `rejected`."""
    turns = [_split_turns(row[key]) for key in ("chosen", "rejected")]
    if turns[0][0] != turns[1][0]:
        raise DataError(where, "`chosen` and `rejected` answer different prompts")
    prompt = _check_prompt(where, turns[0][0] or row.get("prompt"))
    texts = [
        _response_text(where, key, answer)
        for key, (_, answer) in zip(("chosen", "rejected"), turns, strict=True)
    ]
    scores = [row.get("score_chosen"), row.get("score_rejected")]
    if scores == [None, None]:
        return Record(prompt, texts, None, where, preferred=0)
    return Record(prompt, texts, _check_rewards(where, scores, 2), where, preferred=0)


def _split_turns(answer: object) -> tuple[list[Message], object]:
    """A conversation is its leading turns and its last message; a text has no leading turns."""
    if isinstance(answer, (list, tuple)) and answer:
        return list(answer[:-1]), [answer[-1]]
    return [], answer


def _check_prompt(where: str, prompt: object) -> Prompt:
    if isinstance(prompt, str):
        if not prompt:
            raise DataError(where, "`prompt` is empty")
        return prompt
    if not isinstance(prompt, (list, tuple)) or not prompt:
        kind = "missing" if prompt is None else f"of type {type(prompt).__name__}"
        raise DataError(where, f"`prompt` is {kind}", "It is a text or a list of chat messages.")
    for number, message in enumerate(prompt):
        if not _is_message(message):
            raise DataError(where, f"prompt[{number}] is not a message with `role` and `content`")
    if prompt[-1]["role"] == "assistant":
        raise DataError(where, "`prompt` ends with an assistant turn; that is a response")
    return [{"role": message["role"], "content": message["content"]} for message in prompt]


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def _response_text(where: str, name: str, response: object) -> str:
    """A text, or a conversation of one assistant message."""
    if isinstance(response, str):
        return response
    if isinstance(response, (list, tuple)) and len(response) == 1 and _is_message(response[0]):
        message = response[0]
        if message["role"] == "assistant":
            return str(message["content"])
    raise DataError(
        where, f"`{name}` must be a text or one assistant message, got {response!r:.80}"
    )


def _check_rewards(where: str, rewards: object, count: int) -> list[float]:
    if not isinstance(rewards, (list, tuple)):
        raise DataError(where, f"`rewards` must be a list, got {type(rewards).__name__}")
    if len(rewards) != count:
        raise DataError(where, f"{count} responses but {len(rewards)} rewards")
    for number, reward in enumerate(rewards):
        numeric = isinstance(reward, (int, float)) and not isinstance(reward, bool)
        if not numeric or not math.isfinite(reward):
            raise DataError(where, f"reward {number} is {reward!r}, not a finite number")
    return [float(reward) for reward in rewards]
