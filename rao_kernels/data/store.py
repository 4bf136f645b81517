"""Tokenized records on disk, read as they are asked for: data larger than memory.

A store is an Arrow IPC file of batches of consecutive records, which is mapped into memory, and a
manifest beside it in JSON. The manifest is written last, so that a store with one is complete; both
are written under another name, synced, and renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from ..errors import DataError, MissingDependencyError
from .records import DataReport
from .tokenized import TokenizedRow

# Records of a batch: what is in memory while a store is written.
BATCH_ROWS = 32
_FORMAT = "3"


class StoredRows(Sequence[TokenizedRow]):
    """The records of a store, read from the mapped file at each access.

    A process that gets a copy, such as a worker of a data loader, maps the file itself.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._reader: Any = None
        self._length = int(_read_manifest(self.path)["rows"])

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> TokenizedRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenizedRow]: ...

    def __getitem__(self, index: int | slice) -> TokenizedRow | list[TokenizedRow]:
        if isinstance(index, slice):
            return [self[position] for position in range(len(self))[index]]
        batch, position = divmod(range(len(self))[index], BATCH_ROWS)
        return self._batch(batch)[position]

    def __iter__(self) -> Iterator[TokenizedRow]:
        # Read, not mapped: one batch is in memory, where all that was read of a mapped file may be.
        arrow = _pyarrow()
        with arrow.OSFile(str(self.path)) as file:
            reader = arrow.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                batch = _Batch(reader.get_batch(number))
                yield from (batch[position] for position in range(batch.rows))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def _batch(self, number: int) -> _Batch:
        if self._reader is None:
            arrow = _pyarrow()
            self._reader = arrow.ipc.open_file(arrow.memory_map(str(self.path)))
        return _Batch(self._reader.get_batch(number))


class JoinedRows(Sequence[TokenizedRow]):
    """Several sequences of records, one after another, without a copy of them."""

    def __init__(self, *parts: Sequence[TokenizedRow]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @overload
    def __getitem__(self, index: int) -> TokenizedRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenizedRow]: ...

    def __getitem__(self, index: int | slice) -> TokenizedRow | list[TokenizedRow]:
        if isinstance(index, slice):
            return [self[position] for position in range(len(self))[index]]
        position = range(len(self))[index]
        for part in self.parts:
            if position < len(part):
                return part[position]
            position -= len(part)
        raise AssertionError("the index is in range")

    def __iter__(self) -> Iterator[TokenizedRow]:
        return chain.from_iterable(self.parts)


def store_rows(
    folder: str | Path, parts: Mapping[str, str], rows: Iterable[TokenizedRow], report: DataReport
) -> StoredRows:
    """Write records to a store, batch by batch.

    Args:
        folder: where stores are kept; created if needed.
        parts: everything the records depend on, by name: the store's name is their hash.
        rows: iterated once.
        report: what making the records reports, complete once the last one was made; kept with the
            store.

    Raises:
        DataError: the folder cannot be written to.
    """
    path = _path(folder, parts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as name:
            count = _write(name, rows)
        # The report of the rows is complete only now.
        manifest = {"parts": dict(parts), "rows": count, "report": report.as_dict()}
        with _replacing(_manifest(path)) as name:
            name.write_text(json.dumps(manifest))
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise DataError(str(path), problem, "Choose another output_dir, or free space.") from error
    return StoredRows(path)


def open_rows(folder: str | Path, parts: Mapping[str, str]) -> tuple[StoredRows, DataReport] | None:
    """Return the complete store of `parts` in `folder` and its report; None without one."""
    path = _path(folder, parts)
    if not (path.exists() and _manifest(path).exists()):
        return None
    return StoredRows(path), DataReport.from_dict(_read_manifest(path)["report"])


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a name to write a file under; the file replaces `path` if nothing was raised.

    The name is always the same, so that a killed process leaves one file at most, and one process
    writes under it at a time.
    """
    name = path.with_name(f"{path.name}.tmp")
    with _locked(name):
        try:
            yield name
            with open(name, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(name, path)
        finally:
            name.unlink(missing_ok=True)


@contextmanager
def _locked(name: Path) -> Iterator[None]:
    """Create the file and hold its lock; wait while another process does."""
    while True:
        with open(name, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who held the lock before may have renamed or removed the file.
            if name.exists() and os.path.samestat(os.fstat(file.fileno()), name.stat()):
                yield
                return


def _path(folder: str | Path, parts: Mapping[str, str]) -> Path:
    text = json.dumps({"format": _FORMAT, **parts}, sort_keys=True)
    return Path(folder) / f"rows-{hashlib.sha256(text.encode()).hexdigest()[:16]}.arrow"


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_manifest(path).read_bytes()))
    except (OSError, ValueError) as error:
        problem = f"no manifest of a complete store ({error})"
        raise DataError(str(path), problem, "Remove it; it is written anew.") from error


def _write(name: Path, rows: Iterable[TokenizedRow]) -> int:
    arrow, count, remaining = _pyarrow(), 0, iter(rows)
    schema = arrow.schema(_columns(arrow))
    with arrow.OSFile(str(name), "wb") as sink, arrow.ipc.new_file(sink, schema) as writer:
        while batch := list(islice(remaining, BATCH_ROWS)):
            columns = [
                arrow.array([_to_arrow(getattr(row, column.name)) for row in batch], column.type)
                for column in schema
            ]
            writer.write_batch(arrow.record_batch(columns, schema=schema))
            count += len(batch)
    return count


def _columns(arrow: Any) -> list[tuple[str, Any]]:
    """Return the names of `TokenizedRow`'s fields with their Arrow types."""
    listed = arrow.list_
    ids, marks, numbers = listed(arrow.int32()), listed(arrow.bool_()), listed(arrow.float64())
    return [
        ("prompt", ids),
        ("responses", listed(ids)),
        ("rewards", numbers),
        ("preferred", marks),
        ("where", arrow.string()),
        ("masks", listed(marks)),
        ("token_inputs", arrow.map_(arrow.string(), listed(listed(arrow.float32())))),
        ("gold", ids),
        ("gold_mask", marks),
        ("gold_reward", arrow.float64()),
        ("gold_marks", marks),
        ("ref_rewards", numbers),
        ("reward_ensemble", listed(numbers)),
        ("kl_responses", listed(ids)),
        ("logp_temperature", arrow.float64()),
    ]


# Fields of tensors; others are numbers and lists of them.
_TENSORS = {"prompt", "responses", "masks", "token_inputs", "gold", "gold_mask", "kl_responses"}


def _to_arrow(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, list):
        return [_to_arrow(one) for one in value]
    if isinstance(value, dict):
        return [(name, _to_arrow(one)) for name, one in value.items()]
    return value


class _Batch:
    """Reads records of an Arrow batch without a copy of the others."""

    def __init__(self, batch: Any) -> None:
        self.rows = batch.num_rows
        self._read = {
            name: _reader(column, name in _TENSORS)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
            if column.null_count < len(column)
        }

    def __getitem__(self, position: int) -> TokenizedRow:
        values: dict[str, Any] = {"rewards": None, "preferred": None}
        values |= {name: read(position) for name, read in self._read.items()}
        return TokenizedRow(**values)


def _reader(array: Any, tensors: bool) -> Callable[[int], Any]:
    """Return a function that gives the value at a position; tensors: lists as tensors.

    Tensors are copies, since they may be written to and the mapped file may not.
    """
    types = _pyarrow().types
    if types.is_map(array.type):
        of_key, of_item = _reader(array.keys, tensors), _reader(array.items, tensors)
        starts = array.offsets.to_pylist()
        return lambda i: {of_key(j): of_item(j) for j in range(starts[i], starts[i + 1])}
    if not types.is_list(array.type):
        return lambda i: array[i].as_py()
    starts = array.offsets.to_pylist()
    absent = set(array.is_null().to_numpy(zero_copy_only=False).nonzero()[0].tolist())
    if types.is_list(array.type.value_type):
        inner = _reader(array.values, tensors)
        return lambda i: (
            None if i in absent else [inner(j) for j in range(starts[i], starts[i + 1])]
        )
    flat = array.values.to_numpy(zero_copy_only=False)

    def leaf(i: int) -> Any:
        values = flat[starts[i] : starts[i + 1]]
        if i in absent:
            return None
        return torch.from_numpy(values.copy()) if tensors else values.tolist()

    return leaf


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "train") from error
    return pyarrow
