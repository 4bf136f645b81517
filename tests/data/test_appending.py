"""A file that goes on after a stop: nothing lost, nothing twice, nobody else's file touched."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rao_kernels.data.appending import ResumableOutput
from rao_kernels.errors import DataError, InputError

WHO = {"model": "m", "settings": (1, 2)}


def lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_goes_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    with ResumableOutput(path, WHO) as output:
        assert output.done == 0
        output.write([{"a": 1}, {"a": "ü\ud800"}])
        assert output.done == 2
    with open(path, "ab") as file:
        file.write(b'{"a": 3')
    with ResumableOutput(path, WHO) as output:
        assert output.done == 2
        output.write([{"a": 3}])
    assert lines(path) == [{"a": 1}, {"a": "ü\ud800"}, {"a": 3}]
    assert json.loads((path.parent / "out.jsonl.state.json").read_text())["settings"] == [1, 2]


def test_what_was_written_outlives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    code = (
        "import sys, os, signal\n"
        "from rao_kernels.data.appending import ResumableOutput\n"
        "output = ResumableOutput(sys.argv[1], {})\n"
        "output.write([{'a': 1}])\n"
        "output._file.write(b'{\"a\"')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=root, env={**os.environ, "PYTHONPATH": root}
    )
    assert done.returncode == -signal.SIGKILL
    with ResumableOutput(path, {}) as output:
        assert output.done == 1
    assert lines(path) == [{"a": 1}]


def test_a_file_that_is_not_its_own(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="another program wrote"):
        ResumableOutput(path, WHO)
    path.unlink()
    with ResumableOutput(path, WHO) as output:
        output.write([{"a": 1}])
    with pytest.raises(InputError, match='model is "n", was "m"'):
        ResumableOutput(path, {**WHO, "model": "n"})
    with pytest.raises(InputError, match="more is 1, was null"):
        ResumableOutput(path, {**WHO, "more": 1})
    with pytest.raises(InputError, match="settings is null, was"):
        ResumableOutput(path, {"model": "m"})
    (tmp_path / "out.jsonl.state.json").write_text("{")
    with pytest.raises(InputError, match=r"out\.jsonl\.state\.json"):
        ResumableOutput(path, WHO)
    assert lines(path) == [{"a": 1}]
    # An empty file is nobody's, and one that was removed begins anew.
    path.unlink()
    with ResumableOutput(path, {"other": 1}) as output:
        assert output.done == 0


def test_one_process_at_a_time_and_places_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResumableOutput(path, WHO), pytest.raises(InputError, match="no other process"):
        ResumableOutput(path, WHO)
    with pytest.raises(InputError, match=r"ends with \.jsonl"):
        ResumableOutput(tmp_path / "out.json", WHO)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can be written"):
        ResumableOutput(tmp_path / "file" / "out.jsonl", WHO)


def test_values_that_json_has_not_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResumableOutput(path, WHO) as output:
        with pytest.raises(DataError, match=r"out\.jsonl:2: cannot be JSON .*date"):
            output.write([{"a": 1}, {"a": datetime.date(2020, 1, 1)}])
        assert output.done == 0
    assert path.read_text() == ""
