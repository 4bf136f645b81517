"""Score the responses of records and write the records with their rewards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ..data import BadRows, DataReport, Prompt, Record, Response, ShapeOptions, iter_raw
from ..data.appending import ResumableOutput
from ..data.messages import is_absent
from ..errors import DataError, InputError
from .columns import check_left, with_rewards
from .interface import Candidate, Scorer, attempt
from .reward_model import RewardEnsemble, mean_of

# Columns that hold the texts; the others reach rules.
_TEXTS = ("prompt", "responses", "chosen", "rejected", "completion", "messages")
Samples = Mapping[str, list[Response]]
Paths = str | PathLike[str] | Sequence[str | PathLike[str]]


@dataclass(frozen=True)
class AnnotateOptions:
    """What `annotate` scores.

    gold: score the column `gold` too, into `gold_reward`.
    overwrite: score responses that have rewards already, again; otherwise they are refused, or
        kept where only `ref_rewards` are added. `reward_ensemble` is replaced with the rewards.
    limit: take the first so many records; None: all.
    bad_rows: "raise" at a bad record or one that gets no reward, or "skip" and report it.
    batch_size: records that are scored and written at once.
    shapes: how columns are read.
    """

    gold: bool = False
    overwrite: bool = False
    limit: int | None = None
    bad_rows: BadRows = "raise"
    batch_size: int = 32
    shapes: ShapeOptions = field(default_factory=ShapeOptions)


def annotate(
    data: Paths,
    output: str | PathLike[str],
    scorer: Scorer,
    options: AnnotateOptions | None = None,
    *,
    ref_samples: Paths | None = None,
    progress: bool = False,
) -> DataReport:
    """Write every record with rewards, and all its own columns, to a .jsonl file.

    A pair gets `score_chosen` and `score_rejected`; another record `rewards`, one per response (and
    `prompt` and `responses`, if its texts have other names; a pair beside a list of all responses
    goes). `scorer` says what scored. A `RewardEnsemble` also gives `reward_ensemble`, the rewards
    of each member.

    Records are written in the order of the data as they are scored. A call that was stopped, even
    killed, goes on behind the last whole record when it is made again.

    Args:
        data: files of records.
        output: the .jsonl file, with a state file beside it; under ``bad_rows="skip"`` also
            ``NAME.skipped.jsonl``, the records that got no reward.
        scorer: the source of rewards.
        options: None: as `AnnotateOptions()`.
        ref_samples: files of responses that the reference sampled to the prompts of `data`: their
            rewards are written as `ref_rewards` into the records of the same prompt.
        progress: show a progress bar.

    Returns:
        Counts, and the records that were skipped.

    Raises:
        DataError: a record is bad, gets no reward or has no samples, and `bad_rows` is "raise". The
            records before it are written.
        InputError: records have rewards already, or would keep some of another scorer; or the
            output is another call's.
        KeyboardInterrupt: says how many records are written.
    """
    options = AnnotateOptions() if options is None else options
    files, report = _paths(data), DataReport()
    _check(files, Path(output), options)
    samples = None if ref_samples is None else _read_samples(_paths(ref_samples), options.bad_rows)
    identity = {
        "data": _fingerprint(files),
        "ref_samples": None if ref_samples is None else _fingerprint(_paths(ref_samples)),
        "scorer": scorer.describe(),
        "gold": options.gold,
        "overwrite": options.overwrite,
        "bad_rows": options.bad_rows,
        "shapes": asdict(options.shapes),
    }
    with ResumableOutput(output, identity) as out:
        work = _Annotation(out, scorer, options, samples, report, identity)
        try:
            for batch in _batches(work.pending(files, progress), options.batch_size):
                work.write(batch)
        except KeyboardInterrupt:
            text = f"{out.done} records are in {out.path}; the same command goes on behind them"
            raise KeyboardInterrupt(text) from None
        finally:
            work.close()
        report.rows = out.done
    return report


@dataclass(frozen=True)
class _Item:
    """A record to be written. parts: what is scored of it, by the column it goes to."""

    number: int
    columns: Mapping[str, Any]
    record: Record
    parts: dict[str, list[Response]]


class _Annotation:
    def __init__(
        self,
        out: ResumableOutput,
        scorer: Scorer,
        options: AnnotateOptions,
        samples: Samples | None,
        report: DataReport,
        identity: Mapping[str, Any],
    ) -> None:
        self.out, self.options, self.samples, self.report = out, options, samples, report
        self.sources = scorer.scorers if isinstance(scorer, RewardEnsemble) else [scorer]
        # Through JSON, so that it equals what a file gives back.
        self.described = json.loads(json.dumps(scorer.describe()))
        self.skips = _open_skips(out, identity) if options.bad_rows == "skip" else None

    def close(self) -> None:
        if self.skips is not None:
            self.skips.close()

    def pending(self, data: Sequence[str], progress: bool) -> Iterator[_Item]:
        """Yield the records that are neither written nor skipped yet."""
        skipped, left = self._skipped(), self.out.done
        bar = _progress_bar(self._count(data) if progress else None)
        lines = self._lines(data, self.options.bad_rows, self.report)
        for number, (columns, record) in enumerate(lines):
            bar.update()
            if number in skipped:
                continue
            if left:
                left -= 1
                continue
            item = _Item(number, columns, record, {})
            try:
                yield replace(item, parts=self._parts(columns, record))
            except DataError as error:
                self._skip([(item, error)])
        bar.close()

    def _lines(
        self, data: Sequence[str], bad_rows: BadRows, report: DataReport
    ) -> Iterator[tuple[Mapping[str, Any], Record]]:
        limit, shapes = self.options.limit, self.options.shapes
        return iter_raw(list(data), limit=limit, bad_rows=bad_rows, report=report, options=shapes)

    def _count(self, data: Sequence[str]) -> int:
        """Count the records that can be read; what is wrong with others is raised in its place."""
        count = 0
        with suppress(DataError, InputError):
            for _ in self._lines(data, "skip", DataReport()):
                count += 1
        return count

    def _parts(self, columns: Mapping[str, Any], record: Record) -> dict[str, list[Response]]:
        """Return what is to be scored, by column."""
        parts: dict[str, list[Response]] = {}
        if self._needs_rewards(columns, record):
            parts["rewards"] = record.responses
        if self.options.gold and record.gold is not None:
            self._check_absent(columns, record, "gold_reward")
            parts["gold_reward"] = [record.gold]
        if self.samples is not None:
            self._check_absent(columns, record, "ref_rewards")
            found = self.samples.get(_key(record.prompt))
            if not found:
                raise DataError(record.where, "no sample of the reference has its prompt")
            parts["ref_rewards"] = found
        check_left(columns, record, parts, self.described)
        return parts

    def _needs_rewards(self, columns: Mapping[str, Any], record: Record) -> bool:
        if record.rewards is None:
            self._check_absent(columns, record, "reward_ensemble")
            return True
        if self.options.overwrite:
            return True
        if self.samples is None:
            self._refuse(record, "rewards")
        return False

    def _check_absent(self, columns: Mapping[str, Any], record: Record, name: str) -> None:
        if not is_absent(columns.get(name)) and not self.options.overwrite:
            self._refuse(record, name)

    def _refuse(self, record: Record, name: str) -> None:
        fix = "Pass --overwrite to replace them (in Python overwrite=True)."
        raise InputError("data", f"records without `{name}`", f"{record.where} with them", fix)

    def write(self, batch: Sequence[_Item]) -> None:
        """Score records and append them; of those before an error nothing is lost."""
        flat = [
            (item, name, number)
            for item in batch
            for name, texts in item.parts.items()
            for number in range(len(texts))
        ]
        candidates = [_candidate(item, name, number) for item, name, number in flat]
        members = [attempt(source, candidates) for source in self.sources] if candidates else []
        found: dict[tuple[int, str], list[tuple[float | DataError, ...]]] = {}
        for (item, name, _), values in zip(flat, zip(*members, strict=True), strict=True):
            found.setdefault((item.number, name), []).append(values)
        done, bad = [], []
        for item in batch:
            own = {name: found[item.number, name] for name in item.parts}
            error = next(
                (e for rows in own.values() for v in rows for e in v if _is_error(e)), None
            )
            if isinstance(error, DataError):
                bad.append((item, error))
                if self.skips is None:
                    break
            else:
                done.append(self._line(item, own))
        if self.skips is None:
            self.out.write(done)
        self._skip(bad)
        if self.skips is not None:
            self.out.write(done)

    def _line(self, item: _Item, found: Mapping[str, Any]) -> dict[str, Any]:
        line = dict(item.columns)
        for name, values in found.items():
            means = [mean_of(one) for one in values]
            if name == "rewards":
                line = with_rewards(line, item.record, means, self.options.shapes)
                line.pop("reward_ensemble", None)  # of the rewards before
                if len(self.sources) > 1:
                    line["reward_ensemble"] = [list(member) for member in zip(*values, strict=True)]
            else:
                line[name] = means[0] if name == "gold_reward" else means
        return line | {"scorer": self.described}

    def _skip(self, bad: Sequence[tuple[_Item, DataError]]) -> None:
        """Note records that get no reward, before those after them are written; or raise."""
        if bad and self.skips is None:
            raise bad[0][1]
        if bad and self.skips is not None:
            self.skips.write([{"record": item.number, "problem": str(e)} for item, e in bad])
            self.report.skipped += [str(error) for _, error in bad]

    def _skipped(self) -> set[int]:
        if self.skips is None:
            return set()
        lines = [json.loads(line) for line in self.skips.path.read_text().splitlines()]
        self.report.skipped += [line["problem"] for line in lines]
        return {line["record"] for line in lines}


def _open_skips(out: ResumableOutput, identity: Mapping[str, Any]) -> ResumableOutput:
    """Open the list of skipped records, which with the output says where to go on."""
    path = out.path.with_name(f"{out.path.stem}.skipped.jsonl")
    if out.done and not path.exists():
        expected = f"a file with {path.name} beside it, which says what was skipped of its data"
        fix = "Put that file back, or choose another output or remove this one to begin again."
        raise InputError("output", expected, f"{out.path} without it", fix)
    skips = ResumableOutput(path, identity)
    if not out.done:
        skips.clear()  # of an output that was removed
    return skips


def _is_error(value: object) -> bool:
    return isinstance(value, DataError)


def _candidate(item: _Item, name: str, number: int) -> Candidate:
    record = item.record
    columns = {key: value for key, value in item.columns.items() if key not in _TEXTS}
    if record.tools is not None:
        columns["tools"] = record.tools
    finished = columns.pop("finished", None)
    cut = isinstance(finished, list) and name == "rewards" and not finished[number]
    response = item.parts[name][number]
    return Candidate(record.prompt, response, record.where, columns, finished=not cut)


def _read_samples(paths: Sequence[str], bad_rows: BadRows) -> Samples:
    samples: dict[str, list[Response]] = {}
    for _, record in iter_raw(list(paths), bad_rows=bad_rows, report=DataReport()):
        samples.setdefault(_key(record.prompt), []).extend(record.responses)
    return samples


def _key(prompt: Prompt) -> str:
    """Return a key that a text prompt and the same as one user message share."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return json.dumps(messages, sort_keys=True)


def _paths(given: Paths) -> list[str]:
    return [fspath(given)] if isinstance(given, (str, PathLike)) else [fspath(one) for one in given]


def _check(data: Sequence[str], output: Path, options: AnnotateOptions) -> None:
    if options.batch_size < 1:
        raise InputError("batch_size", "at least 1", options.batch_size)
    if options.limit is not None and options.limit < 1:
        raise InputError("limit", "at least 1 record, or None for all", options.limit)
    for path in map(Path, data):
        if path.exists() and output.exists() and path.samefile(output):
            raise InputError("output", "another file than the data", str(output))


def _fingerprint(paths: Sequence[str]) -> str:
    """Return the SHA-256 of the files' bytes."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(path, f"cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _batches(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except DataError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _progress_bar(total: int | None) -> Any:
    """Return the bar of so many records; None: one that is not shown."""
    from tqdm.auto import tqdm

    return tqdm(desc="annotate", unit="record", total=total, disable=total is None)
