"""A case small enough for a test."""

from __future__ import annotations

from pathlib import Path

from rao_kernels.bench import problems
from rao_kernels.bench.cases import OP, Case, Head
from rao_kernels.bench.problems import Problem


def tiny_problem(
    task: str = OP, *, dtype: str = "fp32", softcap: float | None = None, prompt: bool = False
) -> Problem:
    case = Case("", Head("", 16, 96, softcap), dtype, {"cpu": 40}, task=task, prompt=prompt)
    return problems.make(case, "cpu", Path())


def result(provider: str, seconds: float, **others: object) -> dict[str, object]:
    """A result, as `record.read` gives it."""
    return {
        "device": "CPU, 2 threads",
        "isa": "avx2",
        "torch": "2.13.0",
        "packages": {"trl": "1.16.0"},
        "commit": "abc",
        "date": "2026-01-01",
        "time": "00:00:00",
        "suite": "readme",
        "case": "random N=8 D=16 V=96",
        "dtype": "bfloat16",
        "direction": "both",
        "provider": provider,
        "status": "ok",
        "N": 8,
        "D": 16,
        "V": 96,
        "logp_error": 1e-3,
        "dhidden_error": 1e-3,
        "dweight_error": 1e-3,
        "median_s": seconds,
        "ratio_to_gemms": seconds,
        "peak_extra_bytes": 8 << 20,
    } | others
