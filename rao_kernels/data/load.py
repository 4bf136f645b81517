"""Load records of every shape from files, datasets and other iterables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError, InputError
from .fields import make_record
from .groups import Line, join_groups
from .records import BadRows, DataReport, Record, keep_good
from .shapes import ShapeOptions, find_shape, rename_columns
from .sources import Row, read_rows


def load_records(
    source: str | Path | Iterable[Any],
    *,
    limit: int | None = None,
    bad_rows: BadRows = "raise",
    report: DataReport | None = None,
    options: ShapeOptions | None = None,
) -> list[Record]:
    """Read and check records of every shape that docs/data.md lists.

    Args:
        source: a ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` path, a list of such paths, a
            `datasets` object, a data frame of pandas, or any iterable of mappings.
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
    source: str | Path | Iterable[Any],
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
    source: str | Path | Iterable[Any],
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
    if limit is not None and limit < 1:
        raise InputError("limit", "at least 1 record, or None for all", limit)
    if bad_rows not in ("raise", "skip"):
        raise InputError("bad_rows", "'raise' or 'skip'", repr(bad_rows))
    report = DataReport() if report is None else report
    reading = ShapeOptions() if options is None else options
    lines = keep_good(read_rows(source), lambda row: _read(row, reading), report, bad_rows)
    return _counted(islice(join_groups(lines), limit), report, source)


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


def _counted(
    lines: Iterator[Line], report: DataReport, source: object
) -> Iterator[tuple[Mapping[str, Any], Record]]:
    """Count each record; raise if there is none."""
    before = len(report.skipped)
    empty = True
    for line in lines:
        empty = False
        report.count(line.shape.name, line.record)
        yield line.columns, line.record
    if empty:
        skipped = report.skipped[before:]
        if not skipped:
            raise DataError(_name(source), "holds no usable record: it is empty")
        problem = f"holds no usable record: all {len(skipped)} are bad"
        raise DataError(_name(source), problem, f"The first is {skipped[0]}")


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
