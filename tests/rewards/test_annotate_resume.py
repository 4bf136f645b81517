"""What was stopped, killed or interrupted goes on; bad records are skipped once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rao_kernels.errors import DataError, InputError
from rao_kernels.rewards import AnnotateOptions, JudgeScorer, RuleScorer, annotate
from tests.train.tiny import write_jsonl

from .annotated import run
from .models import StubJudge
from .rows import Rows, judged, length, read, unscored

ROOT = Path(__file__).parents[2]


def test_an_unscored_record_stops_behind_those_before_it(
    score: Callable[..., Rows], tmp_path: Path
) -> None:
    rows = unscored(6)
    bad = rows[4]["responses"][1]
    with pytest.raises(DataError, match=r"data\.jsonl:5: the judge's answer.*no idea"):
        score(rows, judged(bad), batch_size=3)
    assert len(read(tmp_path / "out.jsonl")) == 4
    scorer = judged()
    assert len(score(rows, scorer, batch_size=3)) == 6
    assert scorer.judge.asked == [*rows[4]["responses"], *rows[5]["responses"]]  # type: ignore[attr-defined]


def test_unscored_records_are_skipped_once(score: Callable[..., Rows], tmp_path: Path) -> None:
    rows: list[Any] = [*unscored(7)]
    bad = rows[4]["responses"][1]
    rows[2] = {"prompt": "no answers"}
    options = {"batch_size": 2, "bad_rows": "skip"}
    scored = score(rows, judged(bad), **options)
    kept = [row["prompt"] for n, row in enumerate(rows) if n not in (2, 4)]
    assert [row["prompt"] for row in scored] == kept
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Stopped behind the third record: the skipped one is not scored again.
    lines = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out.jsonl").write_text("".join(lines[:3]) + lines[3][:10])
    scorer = judged(bad)
    report = annotate(
        tmp_path / "data.jsonl",
        tmp_path / "out.jsonl",
        scorer,
        AnnotateOptions(**options),  # type: ignore[arg-type]
    )
    assert read(tmp_path / "out.jsonl") == scored
    assert scorer.judge.asked == [*rows[5]["responses"], *rows[6]["responses"]]  # type: ignore[attr-defined]
    assert [one.partition(": ")[0].rpartition(":")[2] for one in report.skipped] == ["5", "3"]


def test_what_to_do_with_bad_records_is_not_changed_on_the_way(
    score: Callable[..., Rows], tmp_path: Path
) -> None:
    """The place to go on is found from both files; another rule would repeat and lose records."""
    rows = unscored(5)
    scorer = judged(rows[1]["responses"][1])
    scored = score(rows, scorer, bad_rows="skip")
    with pytest.raises(InputError, match="`output`.*bad_rows is"):
        score(rows, scorer, bad_rows="raise")
    (tmp_path / "out.skipped.jsonl").unlink()
    with pytest.raises(InputError, match=r"`output`.*out\.skipped\.jsonl.*remove"):
        score(rows, scorer, bad_rows="skip")
    assert read(tmp_path / "out.jsonl") == scored
    assert len(scored) == 4
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(DataError, match=r"data\.jsonl:2"):
        score(rows, scorer, bad_rows="raise")
    with pytest.raises(InputError, match="`output`.*bad_rows is"):
        score(rows, scorer, bad_rows="skip")


def test_without_the_output_all_is_scored_again(score: Callable[..., Rows], tmp_path: Path) -> None:
    """A list of skipped records that is left alone does not count: a judge may answer now."""
    rows = unscored(5)
    moody = iter(["no idea"])
    judge = StubJudge(lambda _: next(moody, "Score: 1"))
    scorer = JudgeScorer(judge, template="{response}")
    assert len(score(rows, scorer, bad_rows="skip")) == 4
    (tmp_path / "out.jsonl").unlink()
    assert len(score(rows, scorer, bad_rows="skip")) == 5
    assert read(tmp_path / "out.skipped.jsonl") == []


def test_killed_and_started_again(tmp_path: Path) -> None:
    rows = unscored(14)
    write_jsonl(tmp_path / "data.jsonl", rows)
    texts = [text for row in rows for text in row["responses"]]
    code = "import sys; from pathlib import Path; from tests.rewards.annotated import run; "
    code += "run(Path(sys.argv[1]), 'killed.jsonl', 'calls', die_at=3)"
    killed = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    written = read(tmp_path / "killed.jsonl")
    assert len(written) == 6
    with open(tmp_path / "killed.jsonl", "a") as file:
        file.write('{"prompt": "torn')
    run(tmp_path, "killed.jsonl", "calls", die_at=0)
    run(tmp_path, "whole.jsonl", "whole", die_at=0)
    assert read(tmp_path / "killed.jsonl") == read(tmp_path / "whole.jsonl")
    # The batch that was being scored is asked for again; what was written is not.
    asked = (tmp_path / "calls").read_text().split()
    assert asked == texts[:18] + texts[12:]


def test_another_scorer_or_other_data_do_not_go_on(
    score: Callable[..., Rows], tmp_path: Path
) -> None:
    rows = unscored(2)
    score(rows)
    with pytest.raises(InputError, match="`output`.*scorer is"):
        score(rows, judged())
    with pytest.raises(InputError, match="`output`.*data is"):
        score(unscored(3))
    assert len(score(rows)) == 2


def test_interrupted_says_what_is_written(tmp_path: Path) -> None:
    calls = 0

    def rule(prompts: Any, completions: Any, **_: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return length(prompts, completions)

    data = write_jsonl(tmp_path / "data.jsonl", unscored(9))
    scorer, options = RuleScorer(rule), AnnotateOptions(batch_size=2)
    with pytest.raises(KeyboardInterrupt, match=r"4 records are in .*out\.jsonl; the same command"):
        annotate(data, tmp_path / "out.jsonl", scorer, options)
    annotate(data, tmp_path / "out.jsonl", scorer, options)
    assert [row["prompt"] for row in read(tmp_path / "out.jsonl")] == [
        f"ask {number}" for number in range(9)
    ]
