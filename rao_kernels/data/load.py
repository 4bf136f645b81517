"""Load records of every shape from files, datasets and other iterables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError, InputError
from .fields import make_record
from .groups import Line, join_groups
from .record_source import RecordSource
from .records import BadRows, DataReport, NoRowsError, Record, keep_good
from .shapes import ShapeOptions, find_shape, rename_columns
from .sources import Row, read_rows


def load_records(
    source: str | Path | Iterable[Any] | RecordSource,
    *,
    limit: int | None = None,
    bad_rows: BadRows = "raise",
    report: DataReport | None = None,
    options: ShapeOptions | None = None,
) -> list[Record]:
    """Read and check records of every shape that docs/data.md lists.

    Args:
        source: a ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` path, a list of such paths, a
            `datasets` object, a data frame of pandas, or any iterable of mappings; or a
            `RecordSource`, which says itself how records are read, and how many.
        limit: return at most this many records; None: all.
        bad_rows: "raise" a `DataError` at the first bad record, or "skip" it and note it in
            `report`.
        report: counts are added to it.
        options: how columns are read; None: as `ShapeOptions()`.

    Returns:
        At least one record.

    Raises:
        DataError: a record is bad, a file cannot be read to its end, or no record is usable.
        InputError: an argument has another value than stated.
    """
    return list(
        iter_records(source, limit=limit, bad_rows=bad_rows, report=report, options=options)
    )


def iter_records(
    source: str | Path | Iterable[Any] | RecordSource,
    *,
    limit: int | None = None,
    bad_rows: BadRows = "raise",
    report: DataReport | None = None,
    options: ShapeOptions | None = None,
) -> Iterator[Record]:
    """Yield what `load_records` returns, reading the source as far as it is iterated."""
    pairs = iter_raw(source, limit=limit, bad_rows=bad_rows, report=report, options=options)
    return (record for _, record in pairs)


def iter_raw(
    source: str | Path | Iterable[Any] | RecordSource,
    *,
    limit: int | None = None,
    bad_rows: BadRows = "raise",
    report: DataReport | None = None,
    options: ShapeOptions | None = None,
) -> Iterator[tuple[Mapping[str, Any], Record]]:
    """Yield each record with the columns that it was read from, renamed as `options.columns` says.

    Where several lines make one record (HelpSteer, OpenRLHF), each column is the list of their
    values, except for those about the prompt, which are the same in all of them.

    Args:
        source, limit, bad_rows, report, options: as of `load_records`.

    Yields:
        Columns and record.

    Raises:
        DataError, InputError: as `load_records` does.
    """
    if bad_rows not in ("raise", "skip"):
        raise InputError("bad_rows", "'raise' or 'skip'", repr(bad_rows))
    report = DataReport() if report is None else report
    given = _as_source(source, options, limit)
    # A record that cannot be read belongs to neither part: the training part reports it.
    bad = DataReport() if given.part == "held_out" else report
    rows = read_rows(given.source)
    lines = keep_good(rows, lambda row: _read(row, given.options), bad, bad_rows)
    return _taken(islice(join_groups(lines), given.limit), given, report, bad.skipped)


def parse_record(where: str, row: object, options: ShapeOptions | None = None) -> Record:
    """Read and check one record.

    Args:
        where: names it in messages, for example ``train.jsonl:12``.
        row: its columns.
        options: how columns are read; None: as `ShapeOptions()`.

    Returns:
        The record.

    Raises:
        DataError: it is bad.
    """
    return _parse(where, row, ShapeOptions() if options is None else options).record


def _as_source(source: Any, options: ShapeOptions | None, limit: int | None) -> RecordSource:
    if not isinstance(source, RecordSource):
        return RecordSource(source, ShapeOptions() if options is None else options, limit)
    if limit is not None or options is not None:
        expected = "None beside a RecordSource, which has its own"
        raise InputError("options" if limit is None else "limit", expected, options or limit)
    return source


def _taken(
    lines: Iterator[Line], source: RecordSource, report: DataReport, skipped: list[str]
) -> Iterator[tuple[Mapping[str, Any], Record]]:
    """Yield the records of the part and count them; raise if there is none.

    skipped: what reading the lines adds to.
    """
    before = len(skipped)
    read = taken = 0
    for line in lines:
        read += 1
        if source.takes(line.record):
            taken += 1
            report.count(line.shape.name, line.record)
            convert = source.convert
            yield line.columns, line.record if convert is None else convert(line.record)
    if not taken:
        raise _none_taken(source, read, skipped[before:])


def _none_taken(source: RecordSource, read: int, skipped: list[str]) -> DataError | InputError:
    name = _name(source.source)
    if read and source.part == "held_out":
        return NoRowsError(name, "none of the prompts fell into the held-out part")
    if read:
        return InputError(
            "eval_fraction",
            "a share that leaves records to train on",
            f"{source.eval_fraction:g}, which holds out all {read}",
            "Pass --eval_fraction 0, or --eval_data with the held-out records.",
        )
    if not skipped:
        return DataError(name, "holds no usable record: it is empty")
    problem = f"holds no usable record: all {len(skipped)} are bad"
    return DataError(name, problem, f"The first is {skipped[0]}")


def _name(source: object) -> str:
    return str(source) if isinstance(source, (str, Path)) else type(source).__name__


def _read(row: Row, options: ShapeOptions) -> Line:
    where, read = row
    return _parse(where, read(), options)


def _parse(where: str, row: object, options: ShapeOptions) -> Line:
    if not isinstance(row, Mapping):
        problem = f"a record must be an object, got {type(row).__name__}"
        raise DataError(where, problem, "A dataset gives them with_format(None).")
    columns = rename_columns(where, row, options.columns)
    shape = find_shape(where, columns, options)
    return Line(columns, make_record(where, columns, shape, options), shape)
