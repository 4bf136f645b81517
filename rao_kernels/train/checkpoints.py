"""Complete checkpoints: mark, find and rotate them.

transformers writes straight into ``checkpoint-N``, and a process can die in the middle. So a marker
with the size of every file is written last. A checkpoint without it, or with a file of another
size, is ignored.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..errors import InputError
from ..refcache import write_atomic

MARKER = "complete.json"
STATE = "rao_state.json"
# Not safetensors: loaders take every such file of a folder for weights.


def mark_complete(folder: Path) -> None:
    """Sync every file of a finished checkpoint and write its marker."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARKER]
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    write_atomic(folder / MARKER, json.dumps(sizes, indent=1).encode())


def unmark(folder: Path) -> None:
    """Remove the marker, before anything in the folder changes."""
    (folder / MARKER).unlink(missing_ok=True)


def is_complete(folder: Path) -> bool:
    """Return whether the marker exists and every file it lists has its size."""
    try:
        sizes = json.loads((folder / MARKER).read_bytes())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def all_checkpoints(output_dir: Path) -> list[Path]:
    """Return the ``checkpoint-N`` folders, complete or not, by N."""
    found = [
        (int(match[1]), path)
        for path in output_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def newest_complete(output_dir: Path) -> Path | None:
    """Return the complete checkpoint with the highest step."""
    complete = [path for path in all_checkpoints(output_dir) if is_complete(path)]
    return complete[-1] if complete else None


def find(asked: str | bool | None, output_dir: Path) -> Path | None:
    """Return the checkpoint to resume from, None to start from the beginning.

    asked: True for the newest complete one of `output_dir`, or the folder of a complete one.
    """
    if not asked:
        return None
    if asked is True:
        return newest_complete(output_dir)
    if not is_complete(Path(asked)):
        raise InputError(
            "resume_from_checkpoint",
            f"a checkpoint folder with its {MARKER}",
            f"{asked}, which is incomplete or no checkpoint",
            "Pass True (on the command line: auto) for the newest complete one.",
        )
    return Path(asked)


def rotate(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Keep the newest `limit` complete checkpoints and the best one; remove the others.

    To be called after a new marker is written: then a complete checkpoint exists at any moment.
    """
    if limit is None or limit <= 0:
        return
    complete = [path for path in all_checkpoints(output_dir) if is_complete(path)]
    kept = set(complete[-limit:]) | ({Path(best)} if best else set())
    for path in all_checkpoints(output_dir):
        if path not in kept:
            unmark(path)
            shutil.rmtree(path, ignore_errors=True)


def write_state(folder: Path, state: dict[str, Any]) -> None:
    write_atomic(folder / STATE, json.dumps(state, indent=1).encode())


def read_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / STATE).read_bytes())
    return state


@contextlib.contextmanager
def without_rotation(args: TrainingArguments) -> Iterator[None]:
    """Keep transformers from removing the last complete checkpoint before a new one is marked."""
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit
