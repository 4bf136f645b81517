"""A .jsonl file that a command appends to, and goes on with after it was stopped."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import DataError, InputError


class ResumableOutput:
    """A .jsonl file of records, appended to by one process, with a state file beside it.

    What `write` returned from is on disk: a process that is killed loses no record, and one that
    is started again with the same identity goes on behind the last whole line. The state file,
    ``NAME.jsonl.state.json``, holds the identity.

    Args:
        path: the file; it and its folder are created.
        identity: everything the records depend on, as JSON; the same for a command that goes on.

    Attributes:
        done: whole records in the file.

    Raises:
        InputError: the file is another program's or was begun with another identity, another
            process writes to it, or it cannot be written.
    """

    def __init__(self, path: str | PathLike[str], identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._state = self.path.with_name(f"{self.path.name}.state.json")
        if self.path.suffix != ".jsonl":
            raise InputError("output", "a file whose name ends with .jsonl", str(self.path))
        # Through JSON, so that it equals what the state file gives back.
        own = dict(json.loads(json.dumps(dict(identity))))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")  # noqa: SIM115  (closed by `close`)
        except OSError as error:
            got = f"{self.path}: {error.strerror}"
            raise InputError("output", "a file that can be written", got) from error
        try:
            self._lock()
            self.done = self._whole_records(own)
            self._write_state(own)
        except BaseException:
            self._file.close()
            raise

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records; when it returns they are on disk.

        Raises:
            DataError: a value of a record is not one that JSON has, such as a date; nothing was
                written.
        """
        lines = [self._line(number, one) for number, one in enumerate(records, self.done + 1)]
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done += len(records)

    def clear(self) -> None:
        """Remove all records."""
        self._file.truncate(0)
        os.fsync(self._file.fileno())
        self.done = 0

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> ResumableOutput:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _line(self, number: int, record: Mapping[str, Any]) -> bytes:
        try:
            return f"{json.dumps(record)}\n".encode()
        except (TypeError, ValueError) as error:
            fix = "Remove the column from the data, or turn it into texts or numbers."
            raise DataError(f"{self.path}:{number}", f"cannot be JSON ({error})", fix) from error

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            expected = "a file that no other process is writing"
            raise InputError("output", expected, str(self.path)) from error

    def _whole_records(self, own: dict[str, Any]) -> int:
        """Return the number of whole lines; drop what stands behind the last of them."""
        size = os.fstat(self._file.fileno()).st_size
        if size == 0:
            return 0
        self._check_identity(own)
        self._file.seek(0)
        lines = whole = 0
        for line in self._file:
            if line.endswith(b"\n"):
                lines, whole = lines + 1, whole + len(line)
        self._file.truncate(whole)
        return lines

    def _check_identity(self, own: dict[str, Any]) -> None:
        expected = f"a new file, or one that the same command began ({self._state.name} beside it)"
        fix = "Choose another output, or remove the file."
        try:
            there = json.loads(self._state.read_bytes())
        except FileNotFoundError as error:
            got = f"{self.path}, which another program wrote"
            raise InputError("output", expected, got, fix) from error
        except (OSError, ValueError) as error:
            raise InputError("output", expected, f"{self._state}: {error}", fix) from error
        names = [*own, *(name for name in there if name not in own)]
        differing = [
            f"{name} is {json.dumps(own.get(name))}, was {json.dumps(there.get(name))}"
            for name in names
            if own.get(name) != there.get(name)
        ]
        if differing:
            got = f"{self.path}, begun with other settings: {'; '.join(differing)}"
            raise InputError("output", expected, got, fix)

    def _write_state(self, own: dict[str, Any]) -> None:
        """Write the state file whole or not at all."""
        partial = self._state.with_name(f"{self._state.name}.partial")
        with open(partial, "wb") as file:
            file.write(json.dumps(own, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._state)
