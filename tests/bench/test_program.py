"""The program, and the command that runs it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from bench import plan, program, providers, trl_step
from bench.cases import CASES, SUITES, Head
from rao_kernels import backends, linear_logprobs
from rao_kernels.backends import Tile
from rao_kernels.cli.main import main

from .test_rows import measured


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


def test_a_wheel_carries_every_package_of_the_suite() -> None:
    root = Path(program.__file__).parents[1]
    setup = (root / "setup.py").read_text()
    for found in (root / "bench").rglob("__init__.py"):
        name = ".".join(("rao_kernels", *found.parent.relative_to(root).parts))
        assert f'"{name}"' in setup


def test_a_case_without_data_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    probe = next(case for case in CASES if case.logits == "probe")
    assert not program._has_data(probe, Path("/nowhere"))
    assert "left out" in capsys.readouterr().err


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
    floor, before, after = trl_step.measured(2, torch.device("cpu"), size, "fp32")
    assert floor["ratio_to_gemms"] == 1.0 and floor["rounds"] == 2
    assert after["status"] == "ok" and after["gradient_difference"] < 1e-5
    assert before["provider"] == "TRL" and before["N"] == 20
    assert before["peak_extra_bytes"] > 0 and before["ratio_to_gemms"] > 1
