"""Trials in processes of their own, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rao_kernels.bench import isolated, measure, run
from rao_kernels.bench.cases import BOTH, Case, Head
from rao_kernels.bench.isolated import Trial
from rao_kernels.bench.providers import BASELINE, REFERENCE
from rao_kernels.bench.record import Result

from .tiny import tiny_problem


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    tiny_problem(dtype="bf16").save(tmp_path / "problem.pt")
    return Trial(tmp_path / "problem.pt", "cpu", REFERENCE, BOTH, threads=1, limit_s=60.0)


def test_a_trial_tells_errors_and_peaks(trial: Trial) -> None:
    result = isolated.run(trial)
    assert result["status"] == "ok", result
    assert 0 < result["dhidden_error"] < 1e-2 and result["largest_logp"] < 0
    assert result["peak_extra_bytes"] > 0


def test_what_a_provider_lacks_is_its_result(trial: Trial) -> None:
    result = isolated.run(Trial(**{**vars(trial), "provider": "Liger chunked losses"}))
    assert result == {"status": "unsupported", "reason": "has no per-token log-probs"}


def test_a_process_that_takes_too_long_is_ended(trial: Trial) -> None:
    result = isolated.run(Trial(**{**vars(trial), "limit_s": 1e-7}))
    assert result["status"] == "too slow"


def test_a_process_that_takes_too_much_memory(trial: Trial) -> None:
    result = isolated.run(Trial(**{**vars(trial), "memory": 1 << 20}))
    assert result["status"] in ("out of memory", "failed"), result


def test_death_by_the_kernel_is_for_want_of_memory() -> None:
    assert isolated._death(-9)["status"] == "out of memory"
    assert isolated._death(1)["status"] == "failed"


def test_judgement() -> None:
    errors = {"logp_error": 1.0, "dhidden_error": 1.0, "dweight_error": 1.0, "largest_logp": -1.0}
    ours, peer = (run.Provider(name, run.Provider, is_ours=name == "rao") for name in ("rao", "b"))
    plain = run.Provider(REFERENCE, run.Provider)
    tried = {one.name: {"status": "ok"} | errors for one in (plain, ours, peer)}
    for name in ("rao", "b"):
        tried[name]["logp_error"] = 1.5
    run._judge(tried, [plain, ours, peer], 0.0)
    assert [tried[n]["status"] for n in (REFERENCE, "rao", "b")] == ["ok", "wrong", "ok"]
    tried = {REFERENCE: {"status": "out of memory"}, "b": {"status": "ok"} | errors}
    run._judge(tried, [plain, peer], 0.0)
    assert tried["b"]["status"] == "failed"


def test_rounds_fit_the_budget() -> None:
    assert [measure.rounds_within(10.0, s, 7) for s in (0.1, 2.0, 100.0)] == [7, 5, 3]


def test_the_first_call_has_a_limit_of_its_own(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be slower than the limit of a call, which holds from the second on."""
    first = float(isolated.run(trial)["first_call_s"])
    assert first > 0
    monkeypatch.setattr(isolated, "FIRST_CALL_S", 1e-3)
    result = isolated.run(trial)
    assert result["status"] == "too slow" and "its first call" in result["reason"]


def test_a_slow_first_call_is_not_judged_by_the_limit(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([1e3, 1.0, 2.0, 3.0, 4.0])

    def taken(call: Callable[[], object]) -> float:
        call()
        return next(seconds)

    monkeypatch.setattr(measure, "seconds_of", taken)
    warm: list[dict[str, object]] = []
    found = isolated.measured(Trial(**{**vars(trial), "rounds": 2, "budget_s": 60}), warm.append)
    assert found["status"] == "ok" and found["call_s"] == 1.0
    assert warm[0]["first_call_s"] == 1e3 and "dhidden_error" in warm[0]
    assert found["rounds"] == 2 and found["median_s"] == 3.5  # one to warm up, then 3 and 4


def test_what_is_slow_after_its_first_call_keeps_its_errors(trial: Trial) -> None:
    result = isolated.run(Trial(**{**vars(trial), "limit_s": 1e-7}))
    assert result["status"] == "too slow" and result["first_call_s"] > 0
    assert result["dhidden_error"] > 0


def test_results_of_a_case() -> None:
    case = Case("suite", Head("Tiny", 16, 96), "bf16", {"cpu": 24}, directions=(BOTH,))
    settings = run.Settings(torch.device("cpu"), Path(), rounds=2)
    chosen = run_providers("rao_kernels recomputed")
    written: list[list[Result]] = []
    (results,) = run.measured([case], chosen, settings, written.append)
    assert written == [results]
    assert [result["provider"] for result in results] == [one.name for one in chosen]
    assert all(result["case"] == "random Tiny, N=24 D=16 V=96" for result in results)
    timed = [result for result in results if "median_s" in result]
    (baseline,) = [result for result in timed if result["provider"] == BASELINE]
    assert baseline["ratio_to_gemms"] == 1.0
    assert all(result["rounds"] == 2 for result in timed)
    ours = results[-1]
    assert ours["status"] == "ok" and ours["dweight_error"] < 1e-2 and ours["V"] == 96


def run_providers(pattern: str) -> list[run.Provider]:
    from rao_kernels.bench import providers

    return providers.chosen(torch.device("cpu"), [pattern])


def test_one_by_one_each_result_is_written_as_it_comes(tmp_path: Path) -> None:
    """As on a GPU: in one process both errors and time, judged by those that came before."""
    path = tmp_path / "problem.pt"
    tiny_problem(dtype="bf16").save(path)
    case = Case("suite", Head("Tiny", 16, 96), "bf16", {"cpu": 40}, directions=(BOTH,))
    settings = run.Settings(torch.device("cpu"), Path(), rounds=2)
    chosen = run_providers("rao_kernels recomputed")
    said: list[str] = []
    task = run.Task(case, BOTH, path, chosen, settings, said.append)
    written: list[tuple[int, Result]] = []

    def write(results: list[Result]) -> None:
        written.extend((len(said), result) for result in results)

    results = run._one_by_one(task, write)
    assert [result for _, result in written] == results
    assert [count for count, _ in written] == [1, 2, 3, 4]  # before the next provider begins
    assert all(r["status"] == "ok" and r["rounds"] == 2 for r in results)
    assert results[0]["provider"] == BASELINE and results[0]["ratio_to_gemms"] == 1.0
    assert results[-1]["ratio_to_gemms"] > 0 and results[-1]["dweight_error"] < 1e-2


def test_what_is_wrong_has_no_time() -> None:
    case = Case("suite", Head("Tiny", 16, 96), "bf16", {"cpu": 40}, directions=(BOTH,))
    settings = run.Settings(torch.device("cpu"), Path())
    task = run.Task(case, BOTH, Path(), [], settings, print)
    times = {"median_s": 1.0, "q10_s": 1.0, "q90_s": 1.0, "rounds": 3}
    tried = {BASELINE: {"status": "ok"} | times, "b": {"status": "wrong", "call_s": 2.0} | times}
    found = run._result(run.Provider("b", run.Provider), tried, task)
    assert not found.keys() & {*times, "ratio_to_gemms"} and found["call_s"] == 2.0
