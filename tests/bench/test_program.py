"""The program, and the command that runs it."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rao_kernels import backends, linear_logprobs
from rao_kernels.backends import Tile
from rao_kernels.bench import cases, plan, program, providers, readme, record, trl_step
from rao_kernels.bench.cases import BOTH, CASES, SUITES, Case, Choice, Head, minutes
from rao_kernels.cli.main import main

from .test_results import measured


def test_a_missing_peer_is_a_failed_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(providers, "missing", lambda needs: {"liger-kernel": ["Liger"]})
    assert program.main(["--suites", "rows"]) == 2
    said = capsys.readouterr().err
    assert "liger-kernel is not installed; needed by: Liger" in said and "[bench]" in said


def test_the_command_gives_the_programs_status(tmp_path: Path) -> None:
    before, after = measured(tmp_path / "a.jsonl", 1.0), measured(tmp_path / "b.jsonl", 2.0)
    assert main(["bench", "compare", str(before), str(before)]) == 0
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "compare", str(before), str(after)])
    assert stopped.value.code == 1


@pytest.mark.parametrize("command", ["", "compare", "plot", "readme", "plan"])
def test_every_option_is_described(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    seen: list[argparse.ArgumentParser] = []

    def stop(parser: argparse.ArgumentParser, _: object) -> None:
        seen.append(parser)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(SystemExit):
        program.main([command] if command else [])
    assert [action.dest for action in seen[0]._actions if not action.help] == []


def test_an_installed_suite_runs_as_a_module_and_writes_where_it_is_run(tmp_path: Path) -> None:
    """Outside a checkout, that is: here the package alone, under another folder."""
    (tmp_path / "rao_kernels").symlink_to(record.ROOT / "rao_kernels")
    command = [sys.executable, "-m", "rao_kernels.bench", "--help"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "bench_results/<machine>" in done.stdout.replace("\n", "")
    assert record.FOLDER == record.ROOT / "bench" / "results"


@pytest.mark.parametrize(("command", "package"), [("plot", "matplotlib"), ("", "rich")])
def test_a_missing_package_of_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: str,
    package: str,
) -> None:
    for name in [one for one in sys.modules if one.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # an import of it fails
    monkeypatch.setattr(providers, "missing", lambda needs: {})
    results = measured(tmp_path / "a.jsonl", 1.0)
    arguments = [command, str(results), "--out", str(tmp_path)] if command else ["--suites", "rows"]
    assert main(["bench", *arguments]) == 2
    said = capsys.readouterr().err
    assert package in said and "pip install 'rao-kernels[bench]'" in said


def test_a_case_without_data_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    real = next(case for case in CASES if case.logits == "real")
    assert not program._has_data(real, Path("/nowhere"))
    assert "left out" in capsys.readouterr().err


def test_a_case_is_found_by_the_name_in_the_readme() -> None:
    """Each first cell of the tables, and no other case of another loss, head or dtype."""
    numbers = readme.PAGE.read_text().split(readme.BEGIN)[1].split(readme.END)[0]
    names = [line.split(" | ")[0].strip("| ") for line in numbers.splitlines() if ", bf16" in line]
    names = [name for name in names if ", bf16" in name and not name.startswith("TRL")]
    assert len(names) > 20
    for name in names:
        found = Choice(SUITES, parts=[name.strip("*").split(": ")[0]]).cases("cpu")
        assert len({(case.name("cpu"), case.dtype) for case in found}) == 1, name


def test_a_named_case_is_found_in_whatever_suite_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--list", "--device", "cpu", "--cases", "dpo, real", "trl dpo"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert [line.split()[0] for line in lines] == ["real", "trl"]
    assert "DPO, real text, SmolLM2 135M, N=2048 D=576 V=49152, bf16" in lines[0]


def test_a_name_of_no_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.main(["--device", "cpu", "--cases", "Llama 9"])
    assert stopped.value.code == 2 and "--list" in capsys.readouterr().err


def test_the_page_states_the_time_of_each_suite() -> None:
    page = (record.ROOT / "docs" / "benchmarks.md").read_text()
    for suite in SUITES:
        seconds = sum(sum(map(one.seconds, one.directions)) for one in CASES if one.suite == suite)
        assert re.search(rf"^\| `{suite}` \| .* \| {minutes(seconds)} \|$", page, re.M), suite
    assert "readme 28 min" in program._suite_times()


def test_cases_not_begun_in_time_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(cases, "CASES", [tiny_case("one"), tiny_case("two")])
    asked = ["--suites", "readme", "--device", "cpu", "--rounds", "1", "--providers", "nobody"]
    assert program.main([*asked, "--minutes", "0", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "left out, 0 minutes have passed: random one, N=24" in said.err and "two" in said.err
    assert "results: none" in said.out
    assert program.main([*asked, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "left out" not in said.err
    assert "[1 of 2, about 2 min left] random one, N=24 D=16 V=96, bf16" in said.out
    assert "[2 of 2, about 1 min left] random two" in said.out
    assert {one["case"] for one in record.read(tmp_path)} == {
        f"random {name}, N=24 D=16 V=96" for name in ("one", "two")
    }


def tiny_case(name: str) -> Case:
    return Case("readme", Head(name, 16, 96), "bf16", {"cpu": 24}, directions=(BOTH,))


def test_cases_have_different_names() -> None:
    names = [(case.suite, case.name("cpu"), case.dtype) for case in CASES]
    assert len(set(names)) == len(names) and SUITES[0] == "readme"


def test_a_choice_is_the_plan_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles that the backend scores are those of the choice; by default those of the op, whose
    gradients result."""
    widths: list[int] = []
    made = plan.problem(plan.Shape(8, Head("", 16, 3000), "fp32"), torch.device("cpu"))
    backend = backends.get(backends.select(None, made.hidden.device, torch.float32))
    score_tile = backend.score_tile

    def noted(head: object, tile: Tile, *others: object) -> None:
        widths.append(tile.width)
        score_tile(head, tile, *others)

    monkeypatch.setattr(backend, "score_tile", noted)
    plan.run(made, plan.Choice(width=512))
    assert widths == [512] * 5 + [440]
    leaves = [made.hidden.clone().requires_grad_(), made.weight.clone().requires_grad_()]
    linear_logprobs(*leaves, made.targets).backward(made.upstream)
    widths.clear()
    found = plan.run(made, plan.Choice())
    assert widths == [tile.width for tile in plan.plan_of(made, plan.Choice()).tiles]
    assert torch.equal(found.dhidden, leaves[0].grad) and torch.equal(found.dweight, leaves[1].grad)


def test_plan_search() -> None:
    shape = plan.Shape(8, Head("", 16, 2048), "bf16")
    *tried, best, default = plan.search(shape, torch.device("cpu"), 1)
    assert {one["tile_width"] for one in tried} == {512, 1024, 2048}
    assert {one["workspace"] for one in tried} == {"default", "nothing", "everything"}
    assert best["role"] == "best" and default["role"] == "default"
    ratio = default["median_s"] / best["median_s"]
    assert default["default_over_best"] == pytest.approx(ratio)
    assert "default" in plan.line([*tried, best, default])


def test_a_step_of_trl_before_and_after() -> None:
    pytest.importorskip("trl", reason="TRL is not installed")
    size = trl_step.Size(pairs=2, prompt=3, answer=5, hidden=16, vocabulary=64, heads=2)
    baseline, before, after = trl_step.measured(2, torch.device("cpu"), size, "fp32")
    assert baseline["ratio_to_gemms"] == 1.0 and baseline["rounds"] == 2
    assert after["status"] == "ok" and after["gradient_difference"] < 1e-5
    assert before["provider"] == "TRL" and before["N"] == 20
    assert before["peak_extra_bytes"] > 0 and before["ratio_to_gemms"] > 1


def test_directions_run_in_the_order_they_are_asked_for() -> None:
    for asked in (("both", "forward"), ("forward", "both")):
        (case,) = Choice(("heads",), ("bf16",), asked, ("random Llama",)).cases("cuda")
        assert case.directions == asked
