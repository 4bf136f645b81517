"""pytest-benchmark entry points: ``pytest bench``. `python -m bench` also judges and compares.

Small cases only; each provider is one benchmark, grouped by case and direction.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from . import problems, providers
from .cases import BOTH, FORWARD, Case, Head
from .problems import Problem

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = Head("", 512, 32768)
CASES = tuple(
    Case("small", SMALL, dtype, {"cpu": 256, "cuda": 4096}, task=task)
    for dtype, task in (("bf16", "log-probs"), ("fp32", "log-probs"), ("bf16", "rao"))
)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.task}-{case.dtype}")
def problem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    path = tmp_path_factory.mktemp("bench") / "problem.pt"
    problems.make(request.param, DEVICE.type, Path()).save(path)
    return Problem.load(path, DEVICE)


@pytest.mark.parametrize("direction", [FORWARD, BOTH])
@pytest.mark.parametrize("provider", providers.registry(DEVICE).values(), ids=lambda one: one.name)
def test_provider(
    benchmark: BenchmarkFixture,
    provider: providers.Provider,
    problem: Problem,
    direction: str,
) -> None:
    try:
        call = provider.prepare(problem, direction)
        call()
    except providers.Unsupported as reason:
        pytest.skip(str(reason))
    benchmark.group = f"{problem.task} {problem.weight.dtype} {direction}"
    benchmark(call)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
