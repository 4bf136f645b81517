"""Read records one at a time from files, `datasets` objects, data frames and other iterables."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from ..errors import DataError, InputError, MissingDependencyError
from .messages import one_line, show

# Where a record is, and a function that returns it or raises `DataError`. A record is read only
# when it is checked, so that `bad_rows` applies to an unreadable one too.
Row = tuple[str, Callable[[], object]]

_FILES = "Files are .jsonl, .jsonl.gz or .parquet."


def read_rows(source: Any) -> Iterator[Row]:
    """Yield every record of a path, of a list of paths, or of an iterable of records."""
    if isinstance(source, (str, os.PathLike)):
        yield from _read_file(os.fspath(source))
        return
    for number, item in enumerate(_iterable(source)):
        if isinstance(item, (str, os.PathLike)):
            yield from _read_file(os.fspath(item))
        else:
            yield f"row {number}", partial(_same, item)


def _same(row: object) -> object:
    return row


def _iterable(source: Any) -> Iterable[Any]:
    expected = "a path, a list of paths, or records"
    if isinstance(source, Mapping):
        raise InputError(
            "source",
            expected,
            f"a {type(source).__name__} with the keys {show(list(source))}",
            "Pass one of its data sets, as in source['train']; a single record goes in a list.",
        )
    # A caller with a data frame has imported pandas already.
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(source, pandas.DataFrame):
        return _frame_rows(source)
    try:
        rows: Iterator[Any] = iter(source)
    except TypeError as error:
        raise InputError("source", expected, show(source)) from error
    return rows


def _frame_rows(frame: Any) -> Iterable[Any]:
    """Return the rows of a data frame, with None for pandas' NaN where something is missing.

    In columns of floats NaN stays: it may be a value.
    """
    if not frame.columns.is_unique:
        raise InputError("source", "columns of different names", show(list(frame.columns)))
    columns = [name for name in frame.columns if frame[name].dtype.kind != "f"]
    cleaned = {name: frame[name].astype(object) for name in columns}
    cleaned = {name: column.where(column.notna(), None) for name, column in cleaned.items()}
    rows: Iterable[Any] = frame.assign(**cleaned).to_dict("records")
    return rows


def _read_file(name: str) -> Iterator[Row]:
    if os.path.isdir(name):
        raise DataError(name, "is a directory", f"Name the files in it. {_FILES}")
    if not os.path.exists(name):
        raise DataError(name, "no such file", "Load a dataset of the hub with `datasets`.")
    if not os.access(name, os.R_OK):
        raise DataError(name, "cannot be read: no permission")
    empty = True
    for row in _rows_of(name):
        empty = False
        yield row
    if empty:
        raise DataError(name, "holds no usable record: it is empty")


def _rows_of(name: str) -> Iterator[Row]:
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _read_jsonl(name)
    if name.endswith(".parquet"):
        return _read_parquet(name)
    fix = _FILES
    if name.endswith(".json"):
        fix += " Write each record of the .json file as one line of a .jsonl file."
    raise DataError(name, "not a file of a supported format", fix)


def _read_jsonl(name: str) -> Iterator[Row]:
    """Yield the lines; each is decoded alone, so that a wrong byte is reported with its line."""
    number = 0
    try:
        with gzip.open(name) if name.endswith(".gz") else open(name, "rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    where = f"{name}:{number}"
                    yield where, partial(_parse_line, where, text)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}:{number + 1}", f"cannot be read ({one_line(error)})") from error


def _parse_line(where: str, line: bytes) -> object:
    try:
        return json.loads(line.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise DataError(where, f"not UTF-8 ({error})", "Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise DataError(where, f"not valid JSON ({error})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(where, f"JSON that cannot be loaded ({one_line(error)})") from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build a JSON object; raise on a repeated key, of which `json` would keep the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((key, count),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {show(key)} occurs {count} times in one object")
    return found


def _read_parquet(name: str) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "train") from error
    failures = (pyarrow.ArrowException, OSError, ValueError)
    try:
        file = pyarrow.parquet.ParquetFile(name, page_checksum_verification=True)
        columns = file.schema_arrow.names
    except failures as error:
        raise DataError(name, f"not a Parquet file ({one_line(error)})") from error
    if len(set(columns)) < len(columns):
        raise DataError(name, f"two columns of one name among {show(columns)}")
    with file:
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(row_groups=[group]):
                    yield from _batch_rows(name, first, batch)
                    first += len(batch)
            except failures as error:
                problem = f"cannot be decoded ({one_line(error)})"
                raise DataError(f"{name}:rows {first} to {end - 1}", problem) from error
            if first != end:
                raise DataError(
                    f"{name}:row {first}", f"the rows end here, but at {end} by the footer"
                )
        if first != file.metadata.num_rows:
            raise DataError(name, f"holds {first} rows, but {file.metadata.num_rows} by its footer")


def _batch_rows(name: str, first: int, batch: Any) -> Iterator[Row]:
    try:
        rows = [partial(_same, row) for row in batch.to_pylist()]
    except (ValueError, ArithmeticError):
        # A text that is not UTF-8, or a date Python cannot hold: find the row.
        rows = [partial(_row_of, batch, name, first, i) for i in range(len(batch))]
    for number, row in enumerate(rows, first):
        yield f"{name}:row {number}", row


def _row_of(batch: Any, name: str, first: int, position: int) -> object:
    try:
        return batch.slice(position, 1).to_pylist()[0]
    except (ValueError, ArithmeticError) as error:
        where = f"{name}:row {first + position}"
        raise DataError(where, f"cannot be decoded ({one_line(error)})") from error
