"""Trials in processes of their own, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rao_kernels.bench import isolated, run
from rao_kernels.bench.cases import BOTH, Case, Head
from rao_kernels.bench.isolated import Trial
from rao_kernels.bench.providers import BASELINE, REFERENCE

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
    result = isolated.run(Trial(**{**vars(trial), "limit_s": 1e-3}))
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
    settings = run.Settings(torch.device("cpu"), Path(), rounds=7, budget_s=10.0)
    assert [run._rounds(s, settings) for s in (0.1, 2.0, 100.0)] == [7, 5, 3]


def test_results_of_a_case() -> None:
    case = Case("suite", Head("Tiny", 16, 96), "bf16", {"cpu": 24}, directions=(BOTH,))
    settings = run.Settings(torch.device("cpu"), Path(), rounds=2)
    chosen = run_providers("rao_kernels recomputed")
    (results,) = run.measured([case], chosen, settings)
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
