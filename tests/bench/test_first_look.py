"""The first look at a GPU, with the CPU in its place, and the peaked logits it measures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from rao_kernels.bench import first_look, measure, peaked, record
from rao_kernels.bench.cases import BOTH, FORWARD, Case, Head
from rao_kernels.bench.look import SMALL, Look, line
from rao_kernels.bench.problems import make
from rao_kernels.bench.providers import BASELINE, REFERENCE

CPU = torch.device("cpu")
HEAD = Head("", 32, 16384)


def look(folder: Path, seconds: float = 600.0) -> Look:
    return Look(CPU, SMALL, folder, rounds=2, until=time.monotonic() + seconds)


def test_from_start_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--small", "--rounds", "2", "--out", str(tmp_path)]
    assert first_look.main(arguments) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    rows = record.read(tmp_path / "rows")
    assert {row["status"] for row in rows} == {"ok"} and {row["suite"] for row in rows} == {"first"}
    for row in rows:
        assert line(row) in printed
    kinds = {row["case"].split(" N=")[0] for row in rows}
    assert kinds == {"errors,", "errors, softcap 15,", "GEMM", "flat,", "peaked,"}
    big = [row for row in rows if row["case"] == "flat, N=256 D=32 V=16384"]
    both = {row["provider"] for row in big if row["direction"] == BOTH}
    assert both == {BASELINE, REFERENCE, *(f"cpu {plan}" for plan in first_look.PLANS)}
    assert {row["provider"] for row in big if row["direction"] == FORWARD} == {
        BASELINE,
        REFERENCE,
        "cpu default",
    }
    assert {row["N"] for row in rows if row["case"].startswith("flat,")} == {256, *SMALL.few}
    assert all(row["median_s"] > 0 and row["ratio_to_gemms"] > 0 for row in big)
    (sparse,) = (row for row in rows if row["provider"] == "calibration")
    assert abs(sparse["kept_share"] - peaked.KEPT_SHARE) < 0.06
    names = {row["provider"] for row in rows if row["case"].startswith("GEMM")}
    assert {name.split(", ")[0] for name in names} == {"logits", "sums of dhidden", "dweight"}
    assert {name.split(", ")[1] for name in names} == {"bfloat16 result", "float32 result"}
    profile = (tmp_path / "first_profile.txt").read_text()
    assert "cpu default, N=256" in profile and "rao_kernels" in profile
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2 and all(len(path.parts) <= 2 for path in files)


def test_a_result_is_written_before_the_next_is_found(tmp_path: Path) -> None:
    it = look(tmp_path)
    what = {"case": "c", "direction": BOTH, "provider": "p", "dtype": "bfloat16"}
    it.attempt(what, lambda: {"median_s": 1.0})

    def ended() -> dict[str, object]:
        (row,) = record.read(tmp_path / "rows")
        assert row["median_s"] == 1.0 and row["status"] == "ok"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        it.attempt(what, ended)
    assert not it.failed


def test_a_call_that_fails_is_a_result(tmp_path: Path) -> None:
    it = look(tmp_path)

    def fails() -> dict[str, object]:
        raise RuntimeError("no such kernel")

    it.attempt({"case": "c", "direction": BOTH, "provider": "p", "dtype": "bfloat16"}, fails)
    (row,) = record.read(tmp_path / "rows")
    assert row["status"] == "failed" and "no such kernel" in row["reason"] and it.failed


def test_errors_that_are_too_large_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "OUR_FACTOR", 1e-6)
    it = look(tmp_path)
    first_look.check_errors(it)
    wrong = {r["provider"] for r in record.read(tmp_path / "rows") if r["status"] == "wrong"}
    assert "cpu retained" in wrong and REFERENCE not in wrong and it.failed


def test_nothing_begins_after_the_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    it = look(tmp_path, seconds=-1.0)
    it.attempt({"case": "c", "direction": BOTH, "provider": "p"}, lambda: {"median_s": 1.0})
    first_look.run(it)
    assert not (tmp_path / "rows").exists()
    said = capsys.readouterr().err
    assert "left out, no time: c" in said and "all that follows" in said


@pytest.mark.parametrize("result", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [96, 40])
def test_gemms_of_tiles(width: int, result: torch.dtype) -> None:
    shapes = ((8, 16), (96, 16), (8, 96))
    hidden, weight, dz = (torch.randn(shape).bfloat16() for shape in shapes)
    made = first_look.Gemms(hidden, weight, dz, width, result)
    for call in (made.score, made.sum_dhidden, made.put_dweight):
        call()
    hidden, weight, dz = hidden.float(), weight.float(), dz.float()
    last = made.tiles[-1]
    logits = made.logits[:, : len(weight[last])]
    assert logits.dtype == made.dhidden.dtype == result
    for got, exact in (
        (logits, hidden @ weight[last].T),
        (made.dhidden, dz @ weight),
        (made.dweight, dz.T @ hidden),
    ):
        torch.testing.assert_close(got.float(), exact, rtol=2e-2, atol=0.2)


def test_peaked_logits_keep_what_they_are_calibrated_to() -> None:
    unscaled, weight = peaked.operands(256, HEAD, torch.bfloat16, CPU)
    for share in (0.2, 0.4):
        scale = peaked.calibrated(unscaled, weight, share)
        hidden, targets = peaked.scaled(unscaled, weight, scale)
        assert abs(peaked.kept_share(hidden, weight, targets) - share) < 0.06


def test_a_larger_scale_keeps_fewer_pairs() -> None:
    unscaled, weight = peaked.operands(256, HEAD, torch.bfloat16, CPU)
    shares = [
        peaked.kept_share(hidden, weight, targets)
        for hidden, targets in (peaked.scaled(unscaled, weight, s) for s in (0.25, 1.0, 4.0))
    ]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.9 > 0.3 > shares[-1]


def test_a_peaked_case_is_a_problem_with_an_answer() -> None:
    case = Case("", Head("", 32, 4096), "bf16", {"cpu": 64}, logits="peaked")
    assert case.name("cpu") == "peaked N=64 D=32 V=4096"
    problem = make(case, "cpu", Path())
    logits = problem.hidden.double() @ problem.weight.double().T
    logps = logits.log_softmax(1).gather(1, problem.targets[:, None]).squeeze(1)
    torch.testing.assert_close(problem.truth.value, logps)
    assert logps.mean() > -5.0  # far above 1 / V: -8.3


def test_rows_of_the_look_name_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAO_BENCH_COMMIT", "abc1234+")
    look(tmp_path).emit({"case": "c", "direction": BOTH, "provider": "p", "status": "ok"})
    (path,) = (tmp_path / "rows").iterdir()
    assert path.name.endswith("-abc1234-changed.jsonl")
    assert json.loads(path.read_text())["commit"] == "abc1234+"
