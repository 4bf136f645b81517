"""The sparse backward: error bounds, vocabulary order, rows and tiles it must not change."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rao_kernels import backends, engine
from rao_kernels.backends import Head, eager
from rao_kernels.engine import record_work
from rao_kernels.engine.sparsity import in_order, needed_rows
from rao_kernels.errors import InputError
from rao_kernels.ops import linear_logprobs, linear_logprobs_and_entropy, linear_token_stats

from ..cases import make
from ..oracle import Problem, dense

DELTA = 2.0**-7
CASES: dict[str, dict[str, object]] = {
    "flat": {"rows": 40, "vocabulary": 9000, "size": 24, "logit_std": 0.01},
    "usual": {"rows": 40, "vocabulary": 9000, "size": 24, "logit_std": 4.0},
    "peaked": {"rows": 40, "vocabulary": 9000, "size": 24, "logit_std": 30.0},
    "everything": {
        "rows": 40,
        "vocabulary": 9000,
        "size": 24,
        "logit_std": 9.0,
        "bias": True,
        "softcap": 20.0,
        "scale": 0.8,
        "ignored": 0.3,
        "entropy": True,
    },
}
RUNS = [
    ("eager", torch.float64),
    ("eager", torch.float32),
    ("cpu", torch.float32),
    ("cpu-amx", torch.float32),
    ("cpu-amx", torch.bfloat16),
]


def gradients(problem: Problem, **options: object) -> tuple[Tensor, ...]:
    leaves = [problem.hidden, problem.weight]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    keywords = {**problem.keywords(), **options}
    logps, entropy = linear_logprobs_and_entropy(*leaves, problem.targets, **keywords)
    total = (problem.dlogp * logps).sum()
    if problem.dentropy is not None:
        total = total + (problem.dentropy * entropy).sum()
    return logps.detach(), entropy.detach(), *torch.autograd.grad(total, leaves)


def row_bounds(problem: Problem, entropy: Tensor, delta: float) -> Tensor:
    """``[N]`` bound of the change of a row's logit gradient, summed over entries."""
    count = problem.weight.shape[0]
    bound = problem.dlogp.abs() * delta
    if problem.dentropy is not None:
        dropped = delta * math.log(count / delta) + delta * entropy
        bound = bound + problem.dentropy.abs() * dropped
    return bound * problem.logit_scale * (problem.targets != -100)


@pytest.mark.parametrize(("backend", "dtype"), RUNS, ids=str, indirect=["backend"])
@pytest.mark.parametrize("workspace_bytes", [0, None])
@pytest.mark.parametrize("case", CASES)
def test_certificates(
    case: str, workspace_bytes: int | None, backend: str, dtype: torch.dtype
) -> None:
    if reason := backends.reasons(torch.device("cpu"), dtype)[backend]:
        pytest.skip(f"backend {backend!r}: {reason}")
    problem = make(dtype=dtype, **CASES[case])
    options = {"backend": backend, "workspace_bytes": workspace_bytes}
    exact = gradients(problem, **options)
    with record_work() as work:
        sparse = gradients(problem, grad_tolerance=DELTA, **options)
    assert (work.row_tiles_kept == work.row_tiles) == (case == "flat")
    bound = row_bounds(problem, exact[1].double(), DELTA)
    # Rounding of the gradients themselves, which the vocabulary order changes.
    rounding = 64 * torch.finfo(dtype).eps
    dhidden = (sparse[2] - exact[2]).double().norm(dim=1)
    largest = problem.weight.double().norm(dim=1).max()
    assert (dhidden <= bound * largest + rounding * exact[2].double().norm()).all()
    dweight = (sparse[3] - exact[3]).double().norm(dim=1).sum()
    total = (bound * problem.hidden.double().norm(dim=1)).sum()
    assert dweight <= total + rounding * exact[3].double().norm(dim=1).sum()
    torch.testing.assert_close(sparse[0], exact[0], rtol=1e-5, atol=1e-4)
    assert (sparse[0] <= 0).all()


def test_certificates_of_the_log_sum_exp() -> None:
    """Its gradient counts against that of the log-prob; at a low temperature besides."""
    problem = make(dtype=torch.float64, **{**CASES["usual"], "scale": 2.0})
    dlse = torch.randn_like(problem.dlogp)
    found = []
    for delta in (0.0, DELTA):
        leaves = [t.clone().requires_grad_() for t in (problem.hidden, problem.weight)]
        with record_work() as work:
            stats = linear_token_stats(
                *leaves, problem.targets, stats=("lse",), grad_tolerance=delta, **problem.keywords()
            )
            total = (problem.dlogp * stats.logps + dlse * stats.lse).sum()
            found.append(torch.autograd.grad(total, leaves))
    assert work.row_tiles_kept < work.row_tiles
    bound = (problem.dlogp - dlse).abs() * DELTA * problem.logit_scale
    dhidden, dweight = ((a - b).norm(dim=1) for a, b in zip(*found, strict=True))
    assert (dhidden <= bound * problem.weight.norm(dim=1).max() + 1e-12).all()
    assert dhidden.max() > 1e-6  # something was dropped that mattered
    assert dweight.sum() <= (bound * problem.hidden.norm(dim=1)).sum() + 1e-12


@pytest.mark.parametrize("given", [False, True])
def test_order_does_not_change_results(given: bool) -> None:
    """Next to nothing is dropped, so only an order that leaks could change the gradients."""
    problem = make(dtype=torch.float64, **CASES["everything"])
    order = torch.randperm(9000) if given else None
    kept = None if order is None else order.clone()
    got = gradients(problem, grad_tolerance=1e-300, vocab_order=order)
    truth = dense(problem)
    torch.testing.assert_close(got[0], truth.logps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[2], truth.dhidden, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got[3], truth.dweight, rtol=1e-10, atol=1e-12)
    assert order is None or torch.equal(order, kept)


def test_bias_gradient_follows_its_entry() -> None:
    problem = make(dtype=torch.float64, **CASES["everything"])
    bias = problem.bias.clone().requires_grad_()
    keywords = {**problem.keywords(), "bias": bias, "grad_tolerance": 1e-300}
    logps = linear_logprobs(problem.hidden, problem.weight, problem.targets, **keywords)
    (logps * problem.dlogp).sum().backward()
    truth = dense(replace(problem, dentropy=None))
    torch.testing.assert_close(bias.grad, truth.dbias, rtol=1e-10, atol=1e-12)


def test_less_is_dropped_for_a_smaller_tolerance_and_the_work_falls() -> None:
    problem = make(dtype=torch.float32, **CASES["usual"])
    kept, flops = [], []
    for delta in (2.0**-2, 2.0**-4, 2.0**-7):
        with record_work() as work:
            gradients(problem, grad_tolerance=delta, workspace_bytes=0)
        kept.append(work.row_tiles_kept)
        flops.append(work.gemm_flops)
    assert kept == sorted(kept) and kept[0] < kept[-1] < work.row_tiles
    assert flops == sorted(flops)


def test_rows_without_upstream_gradient_are_skipped_too() -> None:
    problem = make(dtype=torch.float64, **CASES["peaked"])
    silent = torch.arange(40) % 3 == 0
    problem = replace(problem, dlogp=problem.dlogp.masked_fill(silent, 0.0))
    for workspace_bytes in (0, None):
        with record_work() as work:
            got = gradients(problem, grad_tolerance=1e-300, workspace_bytes=workspace_bytes)
        assert work.rows_differentiated == 40 - int(silent.sum())
        truth = dense(problem)
        torch.testing.assert_close(got[2], truth.dhidden, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(got[3], truth.dweight, rtol=1e-10, atol=1e-12)


def test_order_that_is_no_permutation_raises() -> None:
    problem = make(dtype=torch.float32, **CASES["usual"])
    identity = torch.arange(9000)
    below, above = identity.clone(), identity.clone()
    below[0], above[-1] = -1, 9000  # one index outside, no entry missing beside it
    for order in (torch.zeros_like(identity), identity + 1, below, above):
        with pytest.raises(InputError, match=r"`vocab_order`.*once"):
            gradients(problem, grad_tolerance=DELTA, vocab_order=order)


@pytest.mark.parametrize("workspace_bytes", [0, None])
def test_compiles(workspace_bytes: int | None) -> None:
    problem = make(dtype=torch.float32, **CASES["usual"])

    def function(hidden: Tensor, weight: Tensor) -> Tensor:
        options = {"grad_tolerance": DELTA, "workspace_bytes": workspace_bytes}
        return linear_logprobs(hidden, weight, problem.targets, **options).sum()

    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in (problem.hidden, problem.weight)]
        results.append(torch.autograd.grad(run(*leaves), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_real_rows_keep_few_tiles(shared_dir: Path) -> None:
    """bf16, real hidden states and head: most pairs of row and tile go, the error stays."""
    safetensors = pytest.importorskip("safetensors.torch")
    if reason := backends.reasons(torch.device("cpu"), torch.bfloat16)["cpu"]:
        pytest.skip(f"backend 'cpu': {reason}")
    data = safetensors.load_file(shared_dir / "data" / "probe_train.safetensors")
    head = safetensors.load_file(
        shared_dir / "models" / "smollm2-135m-instruct" / "embed.safetensors"
    )
    codes, scales = (head[f"model.embed_tokens.weight.{part}"] for part in ("q8", "d"))
    weight = (codes.view(*scales.shape, -1) * scales.float()[..., None]).reshape(codes.shape)
    rows = (data["labels"] != -100).nonzero().squeeze(1)[:512]
    problem = Problem(
        data["hidden"][rows], weight.bfloat16(), data["labels"][rows], dlogp=torch.randn(512)
    )
    with record_work() as work:
        logps, _, dhidden, dweight = gradients(problem, grad_tolerance=2.0**-9)
    assert work.row_tiles_kept < 0.15 * work.row_tiles
    truth = dense(problem.to(torch.float64))
    assert float((logps - truth.logps).abs().max()) < 1e-4
    for got, want in ((dhidden, truth.dhidden), (dweight, truth.dweight)):
        assert float((got.double() - want).norm()) < 4e-3 * float(want.norm())


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[bool]]:
    """For each pass on `eager`, whether its tiles had `entries` to gather."""
    found: dict[str, set[bool]] = {"score_tile": set(), "grad_tile": set()}
    for name, seen in found.items():
        operation = getattr(eager, name)

        def noted(head: Head, tile: backends.Tile, *rest: object, do=operation, seen=seen) -> None:
            seen.add(tile.entries is not None)
            do(head, tile, *rest)

        monkeypatch.setattr(eager, name, noted)
    return found


@pytest.mark.parametrize("order", ["identity", "estimated", "reversed"])
def test_an_identity_order_gathers_nothing(gathered: dict[str, set[bool]], order: str) -> None:
    """Nor does the order that is estimated from flat rows, which is the identity."""
    problem = make(**CASES["flat"])
    vocabulary = torch.arange(len(problem.weight))
    given = {"identity": vocabulary, "reversed": vocabulary.flip(0), "estimated": None}[order]
    gradients(problem, grad_tolerance=DELTA, vocab_order=given, backend="eager")
    reorders = {order == "reversed"}
    assert gathered == {"score_tile": reorders, "grad_tile": reorders}


@pytest.mark.parametrize(("backend", "dtype"), RUNS, ids=str, indirect=["backend"])
@pytest.mark.parametrize("workspace_bytes", [0, None])
def test_gathering_in_the_identity_order_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, workspace_bytes: int | None, backend: str, dtype: torch.dtype
) -> None:
    if reason := backends.reasons(torch.device("cpu"), dtype)[backend]:
        pytest.skip(f"backend {backend!r}: {reason}")
    problem = make(dtype=dtype, **CASES["everything"])
    order = torch.arange(len(problem.weight))
    options = {"backend": backend, "workspace_bytes": workspace_bytes, "vocab_order": order}
    found = gradients(problem, grad_tolerance=DELTA, **options)
    monkeypatch.setattr(engine.sparsity, "is_identity", lambda _: torch.tensor(False))
    expected = gradients(problem, grad_tolerance=DELTA, **options)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("identity", [True, False])
def test_one_read_tells_rows_and_identity(monkeypatch: pytest.MonkeyPatch, identity: bool) -> None:
    """On a GPU a read waits for all work before it: there the backward pass has no second one."""
    problem = make(**CASES["usual"])
    vocabulary = len(problem.weight)
    order = torch.arange(vocabulary) if identity else torch.arange(vocabulary).flip(0)
    head = Head(problem.hidden, problem.weight, None, problem.targets, 1.0, None)
    plan = engine.make_plan(
        40,
        vocabulary,
        24,
        torch.float32,
        backend="eager",
        device_type="cpu",
        workspace_bytes=0,
        tolerance=DELTA,
    )
    mass = torch.softmax(torch.randn(40, len(plan.tiles)), 1)
    sparsity = engine.Sparsity(order, mass, torch.zeros(1, dtype=torch.int64))
    ordered = in_order(head, order)
    reads = []
    for name in ("tolist", "item", "nonzero", "__bool__", "__int__", "__float__"):
        read = getattr(Tensor, name)

        def noted(tensor: Tensor, *rest: object, read=read, name=name) -> object:
            reads.append(name)
            return read(tensor, *rest)

        monkeypatch.setattr(Tensor, name, noted)
    needed = needed_rows(sparsity, ordered, plan)
    monkeypatch.undo()
    assert reads == ["tolist"]
    assert [tile.entries is None for tile in needed.tiles] == [identity] * len(plan.tiles)
    assert [tile[:2] for tile in needed.tiles] == [tile[:2] for tile in plan.tiles]
