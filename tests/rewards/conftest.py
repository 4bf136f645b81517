"""Tiny models are fastest on one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rao_kernels.rewards import AnnotateOptions, RuleScorer, annotate
from tests.train.conftest import one_thread
from tests.train.tiny import write_jsonl

from .rows import Rows, length, read

__all__ = ["one_thread"]


@pytest.fixture
def score(tmp_path: Path) -> Callable[..., Rows]:
    """Annotates rows with a scorer, by default the lengths, and returns what was written."""

    def write(rows: Sequence[Any], scorer: Any = None, samples: Any = None, **options: Any) -> Rows:
        data = write_jsonl(tmp_path / "data.jsonl", list(rows))
        given = None if samples is None else write_jsonl(tmp_path / "samples.jsonl", samples)
        out = tmp_path / "out.jsonl"
        scorer = RuleScorer(length) if scorer is None else scorer
        annotate(data, out, scorer, AnnotateOptions(**options), ref_samples=given)
        return read(out)

    return write
