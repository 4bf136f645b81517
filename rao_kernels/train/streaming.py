"""`streaming`: prepared records are written to disk one by one, and read from there."""

from __future__ import annotations

import json
import os
import secrets
import weakref
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import DataReport, RecordSource, StoredRows, TokenizedRow, open_rows, store_rows
from ..refcache import template_fingerprint, tokenizer_fingerprint
from .config import RAOConfig
from .rows import kl_block, row_needs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stored_rows(
    source: Any,
    config: RAOConfig,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Callable[[], Iterator[TokenizedRow]],
    report: DataReport,
) -> tuple[StoredRows, DataReport]:
    """Return the prepared records of `source` on disk, and the report of their preparation.

    What was made of the same files with the same settings is used again. The store of another
    source, which cannot be known again, is removed with the object that reads it.

    Args:
        prepared: prepares the records, and adds to `report`.
    """
    folder = Path(str(config.output_dir)) / "data"
    given = source if isinstance(source, RecordSource) else RecordSource(source)
    files = _files(given.source)
    # Ranks of a machine share its files: the first one writes them.
    with config.main_process_first(desc="preparing the data"):
        if files is None:
            rows = store_rows(folder, {"source": secrets.token_hex(8)}, prepared(), report)
            weakref.finalize(rows, _remove, rows.path, os.getpid())
            return rows, report
        parts = _parts(files, given, config, tokenizer)
        found = open_rows(folder, parts)
        return found or (store_rows(folder, parts, prepared(), report), report)


def _files(source: Any) -> list[Path] | None:
    """Return the files that `source` names; None if it is of another kind."""
    named = [source] if isinstance(source, (str, os.PathLike)) else source
    if not isinstance(named, (list, tuple)) or not named:
        return None
    if not all(isinstance(one, (str, os.PathLike)) for one in named):
        return None
    paths = [Path(one) for one in named]
    # What is no file is reported where it is read.
    return paths if all(path.is_file() for path in paths) else None


def _parts(
    files: list[Path],
    source: RecordSource,
    config: RAOConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, str]:
    """Return everything that the prepared records depend on.

    Of a file its path, size and time of change: reading all of it would take as long as using it.
    """
    needs = row_needs(config)
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return {
        "version": version("rao-kernels"),
        "files": json.dumps(states),
        "reading": json.dumps(source.describe()),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "template": template_fingerprint(tokenizer),
        "max_length": str(config.max_length),
        "truncate_responses": str(config.truncate_responses),
        "prompt_format": config.prompt_format,
        "bad_rows": config.bad_rows,
        "loss": config.spec.name,
        "needs": json.dumps(sorted(needs)),
        "kl_block": str(kl_block(config)) if "kl_logps" in needs else "none",
    }


def _remove(path: Path, process: int) -> None:
    """Remove a store, unless this is a copy of the process that wrote it."""
    if os.getpid() == process:
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
