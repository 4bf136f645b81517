"""Every provider computes what the problem asks for, or says that it does not."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch

from rao_kernels.bench import measure, providers
from rao_kernels.bench.cases import BOTH, FORWARD, FROZEN, LOSSES, OP
from rao_kernels.bench.problems import Problem
from rao_kernels.bench.providers import REFERENCE, Outcome, Provider, Unsupported, liger, products
from rao_kernels.bench.providers._interface import LogProbs

from .tiny import tiny_problem

CPU = torch.device("cpu")
REGISTRY = providers.registry(CPU)
EXACT = [one for one in REGISTRY.values() if not one.is_baseline]
SPARSE, LIGER = REGISTRY["rao_kernels sparse 2^-9"], REGISTRY["Liger chunked losses"]
# In float32, that is.
CANNOT = {(SPARSE.name, task) for task in (OP, *LOSSES)} | {
    (LIGER.name, task) for task in (OP, "rao", "sft")
}
PAIRS = [
    pytest.param(one, task, id=f"{one.name}-{task}")
    for one in EXACT
    for task in (OP, *LOSSES)
    if (one.name, task) not in CANNOT
]


def needs(provider: Provider) -> None:
    for package in providers.missing({provider.name: provider.packages}):
        pytest.skip(f"{package} is not installed")


def outcome(provider: Provider, problem: Problem, direction: str) -> Outcome:
    """What compiled code would give, without the time to compile it."""
    needs(provider)
    with torch.compiler.set_stance("force_eager"):
        return provider.prepare(problem, direction)()


@pytest.mark.parametrize(("name", "task"), sorted(CANNOT))
def test_what_is_not_offered(name: str, task: str) -> None:
    with pytest.raises(Unsupported):
        REGISTRY[name].prepare(tiny_problem(task), BOTH)


@pytest.mark.parametrize(("provider", "task"), PAIRS)
def test_both_directions(provider: Provider, task: str) -> None:
    problem = tiny_problem(task, prompt=task != OP)
    found = outcome(provider, problem, BOTH)
    plain = outcome(REGISTRY[REFERENCE], problem, BOTH)
    assert found.dhidden is not None and found.dweight is not None
    assert found.dhidden.shape == problem.hidden.shape
    got, limit = (measure.errors(one, problem) for one in (found, plain))
    # A handful of tokens: one rounding more or less is much of an error of 1e-7.
    assert all(got[key] <= 4 * limit[key] + 2e-6 for key in got if key.endswith("_error"))


@pytest.mark.parametrize("provider", [*EXACT], ids=lambda one: one.name)
def test_directions(provider: Provider) -> None:
    problem = tiny_problem("sigmoid" if provider is LIGER else OP, dtype="bf16")
    forward, frozen = (outcome(provider, problem, one) for one in (FORWARD, FROZEN))
    assert forward.dhidden is None and forward.dweight is None
    assert frozen.dhidden is not None and frozen.dweight is None
    torch.testing.assert_close(forward.value, frozen.value)


@pytest.mark.parametrize("direction", [FORWARD, BOTH, FROZEN])
@pytest.mark.parametrize("name", [name for name, one in REGISTRY.items() if one.is_baseline])
def test_the_floor_is_three_products(name: str, direction: str) -> None:
    problem = tiny_problem("rao", prompt=True)
    found = REGISTRY[name].prepare(problem, direction)()
    rows = problem.hidden.flatten(0, 1)[problem.batch.response_rows]
    torch.testing.assert_close(found.value, rows @ problem.weight.T)
    assert (found.dhidden is None) == (direction == FORWARD)
    assert (found.dweight is None) == (direction != BOTH)
    if found.dweight is not None:
        assert found.dweight.shape == problem.weight.shape


def test_softcap() -> None:
    for name in (REFERENCE, "rao_kernels", "TRL chunked log-probs"):
        problem = tiny_problem(softcap=1.5)
        found = measure.errors(outcome(REGISTRY[name], problem, BOTH), problem)
        assert found["logp_error"] < 1e-5 and found["dweight_error"] < 1e-5


def test_the_reference_and_the_baseline_are_always_there() -> None:
    names = {one.name for one in providers.chosen(CPU, ["liger"])}
    assert {REFERENCE, "bare GEMMs", "Liger chunked losses"} <= names
    assert "rao_kernels" not in names
    assert len(providers.chosen(CPU, [])) == len(REGISTRY)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "liger-kernel":
            raise metadata.PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    wanted = {one.name: one.packages for one in REGISTRY.values()}
    assert providers.missing(wanted) == {"liger-kernel": ["Liger chunked losses"]}


def test_the_gradient_of_the_floor_is_random() -> None:
    """A GPU multiplies a constant faster."""
    dz = products._operands(tiny_problem(dtype="bf16")).dz.float()
    assert dz.unique().numel() > 1000 and 0.5e-3 < dz.std() < 2e-3 and dz.mean().abs() < 1e-4


def test_providers_of_a_gpu() -> None:
    """Each says what it does not do; Liger's scaled cross-entropy is no loop over torch here."""
    scaled = {one.name: one for one in liger.providers(torch.device("cuda"))}[
        "Liger scaled cross-entropy"
    ]
    assert {"nvidia-cutlass-dsl", "liger-kernel"} <= set(scaled.packages)
    for problem, reason in (
        (tiny_problem(softcap=1.5), "softcap"),
        (tiny_problem(), "bf16"),
        (tiny_problem(dtype="bf16"), "9.0"),
    ):
        with pytest.raises(Unsupported, match=reason):
            scaled.prepare(problem, BOTH)


@pytest.mark.parametrize("direction", [FORWARD, BOTH])
def test_scaled_cross_entropy_of_liger(direction: str) -> None:
    """Its function, by the loop it runs on a CPU."""
    pytest.importorskip("liger_kernel", reason="Liger is not installed")
    problem = tiny_problem()
    call = LogProbs(liger._scaled_cross_entropy).prepare(problem, direction)
    found = measure.errors(call(), problem)
    assert all(found[key] < 1e-5 for key in found if key.endswith("_error"))
