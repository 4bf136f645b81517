"""The cases of the suite under pytest-benchmark: ``pytest bench -k rows:`` runs one suite.

Each provider is a benchmark, grouped by case and direction. `rao-kernels bench` also judges and
compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from rao_kernels.bench import cases, problems, providers, record
from rao_kernels.bench.problems import Problem

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHARED = record.ROOT.parent / "shared"


@pytest.fixture(scope="module")
def problem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    case: cases.Case = request.param
    if not problems.has_data(case, SHARED):
        pytest.skip(f"there are no hidden states of real text in {SHARED}")
    path: Path = tmp_path_factory.mktemp("bench") / "problem.pt"
    problems.make(case, DEVICE.type, SHARED).save(path)
    return Problem.load(path, DEVICE)


def passes() -> list[object]:
    """Case and direction, as the suite has them."""
    return [
        pytest.param(case, direction, id=f"{case.suite}: {case.label(DEVICE.type, direction)}")
        for case in cases.CASES
        for direction in case.directions
    ]


@pytest.mark.parametrize(("problem", "direction"), passes(), indirect=["problem"])
@pytest.mark.parametrize("provider", providers.registry(DEVICE).values(), ids=lambda one: one.name)
def test_provider(
    benchmark: BenchmarkFixture,
    request: pytest.FixtureRequest,
    provider: providers.Provider,
    problem: Problem,
    direction: str,
) -> None:
    for package in providers.missing({provider.name: provider.packages}):
        pytest.skip(f"{package} is not installed")
    try:
        call = provider.prepare(problem, direction)
        call()
    except providers.Unsupported as reason:
        pytest.skip(str(reason))
    benchmark.group = request.node.callspec.id.removeprefix(f"{provider.name}-")
    benchmark(call)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
