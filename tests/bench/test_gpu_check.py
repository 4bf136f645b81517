"""bench/gpu_check.sh with stand-ins for Python and NVIDIA's tools: the commands each step runs."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from rao_kernels.bench import program, record
from rao_kernels.bench.cases import BOTH

SCRIPT = record.ROOT / "bench" / "gpu_check.sh"
STEPS = ("first", "tests", "peers", "peaked", "heads", "growth", "losses", "profile", "sanitize")
STAND_IN = """#!/usr/bin/env bash
printf '%s\\0' "$(basename "$0")" "$@" >>"$CALLS"
echo >>"$CALLS"
if [ "$1" = - ]; then cat >/dev/null; printf 'bare GEMMs\\nplain torch\\n'; fi
[[ "$*" != *"$FAILS"* ]]
"""


@dataclass(frozen=True)
class Call:
    """A command that the script ran."""

    words: list[str]

    def __contains__(self, part: str) -> bool:
        return part in " ".join(self.words)

    def after(self, option: str) -> str:
        return self.words[self.words.index(option) + 1]


def check(folder: Path, *steps: str, fails: str = "nothing") -> tuple[int, str, list[Call]]:
    """Run steps; return the status, the output and the commands."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("python", "ncu", "compute-sanitizer"):
        (tools / name).write_text(STAND_IN)
        (tools / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHON": str(tools / "python"),
        "CALLS": str(folder / "calls"),
        "OUT": str(folder / "out"),
        "TMPDIR": str(folder),
        "FAILS": fails,
    }
    command = ["bash", str(SCRIPT), *steps]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    calls = [Call(line.rstrip("\0").split("\0")) for line in lines]
    return done.returncode, done.stdout + done.stderr, calls


def test_steps_are_chosen_by_name(tmp_path: Path) -> None:
    status, said, calls = check(tmp_path, "no-such-step")
    assert status == 2 and not calls
    assert all(step in said for step in STEPS)


def test_steps_run_in_the_order_they_are_named(tmp_path: Path) -> None:
    status, said, calls = check(tmp_path, "tests", "first")
    assert status == 0 and "all steps passed: tests first" in said
    (first,) = (one for one in calls if "first_look" in one)
    assert f"-m rao_kernels.bench.first_look --out {tmp_path / 'out'}" in first
    pytests = [one for one in calls if "-m pytest" in one]
    assert len(pytests) == 2 and calls.index(pytests[1]) < calls.index(first)
    assert "-n 8" in pytests[0] and "-n 8" not in pytests[1]
    assert "test_triton_gpu.py" in pytests[0] and "test_gpu.py" in pytests[0]


def test_a_step_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    status, said, calls = check(tmp_path, "first", "profile", fails="first_look")
    assert status == 1 and "failed: first" in said
    assert any(one.words[0] == "ncu" for one in calls)


@pytest.mark.parametrize("step", ["peers", "peaked", "heads", "growth", "losses"])
def test_cases_of_a_step(tmp_path: Path, step: str) -> None:
    """The benchmark knows the options, and has cases of the names."""
    status, _, calls = check(tmp_path, step)
    (call,) = (one for one in calls if " -m rao_kernels.bench " in one)
    assert status == 0
    parser = program._parser("", None)
    program._run_options(parser)
    options = parser.parse_args(call.words[call.words.index("rao_kernels.bench") + 1 :])
    found = program._choice(options).cases("cuda")
    assert found and options.providers == ["bare GEMMs", "plain torch"]
    assert all(case.directions[0] == BOTH for case in found if step != "losses")
    if step == "heads":
        assert {case.head.softcap for case in found} == {None, 30.0}
        assert "real" in {case.logits for case in found}


def test_counters_are_of_our_kernels_alone(tmp_path: Path) -> None:
    status, _, calls = check(tmp_path, "profile")
    runs = [one for one in calls if one.words[0] == "ncu"]
    assert status == 0 and {one.after("--size") for one in runs} == {"4096", "1024"}
    (pattern,) = {one.after("--kernel-name").removeprefix("regex:") for one in runs}
    ours = kernels()
    assert {"score_rows", "grad_rows", "_score_tile_fused_kernel"} <= ours
    assert all(re.match(pattern, name) for name in ours)
    for name in ("vectorized_elementwise_kernel", "elementwise_kernel", "triton_poi_fused_kernel"):
        assert not re.match(pattern, name)


def kernels() -> set[str]:
    """Names of the kernels in the sources."""
    found = set()
    for path in (record.ROOT / "csrc" / "cuda").glob("*.cu"):
        found |= set(re.findall(r"__global__[^{;]*?(\w+)\(\s*LogitsTile", path.read_text()))
    for path in (record.ROOT / "rao_kernels" / "backends" / "triton").glob("*_kernels.py"):
        found |= set(re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.M))
    return found


def test_the_sanitizer_sees_fused_and_unfused_kernels(tmp_path: Path) -> None:
    status, _, calls = check(tmp_path, "sanitize")
    runs = [one for one in calls if one.words[0] == "compute-sanitizer"]
    assert status == 0 and all("--error-exitcode 9" in one for one in runs)
    seen = {(one.after("--tool"), one.after("--size")) for one in runs}
    assert seen == {(tool, size) for tool in ("memcheck", "racecheck") for size in ("64", "4096")}


def test_what_comes_back_is_few_files(tmp_path: Path) -> None:
    """A machine that is lent gives back eight, two folders deep."""
    check(tmp_path, *STEPS)
    files = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert set(files) <= {"check.log", "build.log"}


def test_archives_come_whole_or_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("one.tar.xz", "two.tar.xz.part0", "two.tar.xz.part1", "three.tar.xz.part0"):
        (folder / name).write_text(name)
    monkeypatch.setenv("WHEELS", str(folder))
    status, said, calls = check(tmp_path, "first")
    assert status == 0 and "three.tar.xz.part1" in said
    unpacked = [one for one in calls if "tarfile" in one]
    assert len(unpacked) == 2 and str(folder / "one.tar.xz") in unpacked[0]
    whole = Path(unpacked[1].after("-e"))
    assert whole.parent == tmp_path / "rao_gpu" / "site-packages"
    assert whole.read_text() == "two.tar.xz.part0two.tar.xz.part1"
