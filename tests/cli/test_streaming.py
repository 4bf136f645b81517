"""`--streaming` in commands: records are read one by one, and the result is that of memory."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rao_kernels.cli.main import main
from rao_kernels.data import Record, RecordSource, load, load_records, split_records
from rao_kernels.errors import InputError
from tests.train.tiny import save_tiny, tiny_rows, write_jsonl

RECORDS = 150


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "model")
    write_jsonl(tmp_path / "data.jsonl", tiny_rows(RECORDS))
    return tmp_path


class Alive:
    """Counts the records that are in memory at once."""

    def __init__(self) -> None:
        self.made = self.now = self.most = 0

    def count(self, record: Record) -> None:
        self.made += 1
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(record, self._gone)

    def _gone(self) -> None:
        self.now -= 1


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Alive:
    counted, make = Alive(), load.make_record

    def counting(*args: Any) -> Record:
        record = make(*args)
        counted.count(record)
        return record

    monkeypatch.setattr(load, "make_record", counting)
    return counted


def run(folder: Path, command: str, out: str, *more: str) -> bytes:
    """Run a command; return the weights that it saved."""
    arguments = [
        *(command, "--model", str(folder / "model"), "--data", str(folder / "data.jsonl")),
        *("--output_dir", str(folder / out), "--use_cpu", "--max_steps", "3", "--report_to"),
        *("none", "--disable_tqdm", "true", "--learning_rate", "1e-2", *more),
    ]
    assert main(arguments) == 0
    return (folder / out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("train", ("--eval_fraction", "0.3")),
        ("train", ("--eval_fraction", "0", "--limit", "100")),
        ("train", ("--eval_data", "held_out", "--loss", "kto")),
        ("sft", ("--eval_fraction", "0.3", "--responses", "best")),
    ],
)
def test_records_are_never_all_in_memory(
    folder: Path, alive: Alive, command: str, more: tuple[str, ...]
) -> None:
    held_out = str(write_jsonl(folder / "held_out.jsonl", tiny_rows(20)))
    more = tuple(held_out if one == "held_out" else one for one in more)
    expected = run(folder, command, "memory", *more)
    alive.most = 0
    assert run(folder, command, "disk", *more, "--streaming") == expected
    assert alive.made >= 200
    assert alive.most < 12
    assert list((folder / "disk" / "data").glob("*.arrow"))
    read = alive.made
    run(folder, command, "disk", *more, "--streaming", "--max_steps", "4")
    assert alive.made == read, "the stores of the same files and settings are read again"


def test_parts_and_responses_have_stores_of_their_own(folder: Path) -> None:
    """Else another share, or other responses, would be read from the store of the first run."""
    seen = []
    for number, more in enumerate(
        (
            ("--eval_fraction", "0.3", "--responses", "best"),
            ("--eval_fraction", "0.2", "--responses", "best"),
            ("--eval_fraction", "0.2", "--responses", "all"),
        )
    ):
        run(folder, "sft", f"disk{number}", "--streaming", *more)
        seen += [path.name for path in (folder / f"disk{number}" / "data").glob("*.arrow")]
    assert len(seen) == len(set(seen)) == 6


def test_a_bad_record_is_reported_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*tiny_rows(20), {"prompt": "no responses"}]
    write_jsonl(folder / "data.jsonl", rows)
    run(folder, "train", "out", "--eval_fraction", "0.3", "--bad_rows", "skip")
    said = capsys.readouterr()
    assert (said.out + said.err).count("1 bad records skipped") == 1
    assert said.out.count("training data: ") == said.out.count("evaluation data: ") == 1
    assert said.out.count("shapes: native") == 2


@pytest.mark.parametrize("command", ["reward-model", "online"])
def test_streaming_is_refused_where_data_stay_in_memory(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (folder / "rule.py").write_text(
        "def f(completions, **_):\n    return [0.0] * len(completions)\n"
    )
    rule = ("--rule", f"{folder}/rule.py:f") if command == "online" else ()
    arguments = [command, "--model", str(folder / "model"), "--data", str(folder / "data.jsonl")]
    arguments += ["--output_dir", str(folder / "out"), "--use_cpu", "--streaming", *rule]
    assert main(arguments) == 2
    assert "`streaming`" in capsys.readouterr().err


def test_a_source_has_its_own_options() -> None:
    source = RecordSource(tiny_rows(20), limit=10, part="train", eval_fraction=0.4)
    train, held_out = split_records(load_records(tiny_rows(10)), 0.4)
    assert load_records(source) == train
    assert load_records(replace(source, part="held_out")) == held_out
    with pytest.raises(InputError, match="beside a RecordSource"):
        load_records(source, limit=3)
    for wrong in ({"limit": 0}, {"part": "some"}, {"eval_fraction": 1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            RecordSource([], **wrong)  # type: ignore[arg-type]
