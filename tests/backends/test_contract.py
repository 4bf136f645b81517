"""Every backend, dtype and workspace against float64: one contract, one oracle.

A variant is a backend, or one of its forms. Triton's run under its slow interpreter, with fewer
combinations of dtype and workspace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from itertools import product
from statistics import median

import pytest
import torch
from torch import Tensor

from rao_kernels import backends
from rao_kernels.ops import linear_token_stats

from ..cases import PROBLEMS, allowed, error, make
from ..oracle import Answer, Problem, dense
from .conftest import VARIANTS

Case = tuple[Problem, Answer, Answer]  # with its answer in float64, and plain torch's
DRAWS = 15
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
GRADIENTS = ("dhidden", "dweight", "dbias")
WORKSPACES = {"retained": None, "recomputed": 0, "partly": 1 << 19}
INTERPRETED = {
    (torch.float32, "retained"),
    (torch.float32, "recomputed"),
    (torch.bfloat16, "partly"),
}


def require(backend: str, dtype: torch.dtype) -> None:
    if reason := backends.reasons(torch.device("cpu"), dtype)[backend]:
        pytest.skip(f"backend {backend!r}: {reason}")


def run(problem: Problem, backend: str, workspace_bytes: int | None, device: str = "cpu") -> Answer:
    """Return the op's results and gradients, as the oracle returns them."""
    leaves = {
        name: tensor.detach().to(device, copy=True).requires_grad_()
        for name in ("hidden", "weight", "bias")
        if (tensor := getattr(problem, name)) is not None
    }
    stats = linear_token_stats(
        leaves["hidden"],
        leaves["weight"],
        problem.targets.to(device),
        bias=leaves.get("bias"),
        logit_scale=problem.logit_scale,
        logit_softcap=problem.logit_softcap,
        workspace_bytes=workspace_bytes,
        backend=backend,
    )
    total = sum(
        (gradient.to(device) * values.double()).sum()
        for gradient, values in (
            (problem.dlogp, stats.logps),
            (problem.dentropy, stats.entropy),
            (problem.dlse, stats.lse),
        )
        if gradient is not None
    )
    gradients = torch.autograd.grad(total, list(leaves.values()))
    by_name = {name: gradient.cpu() for name, gradient in zip(leaves, gradients, strict=True)}
    values = {f.name: getattr(stats, f.name).detach().cpu() for f in fields(stats)}
    return Answer(
        **values, dhidden=by_name["hidden"], dweight=by_name["weight"], dbias=by_name.get("bias")
    )


def with_answers(problem: Problem) -> Case:
    return problem, dense(problem.to(torch.float64)), dense(problem)


@cache
def case(name: str, dtype: torch.dtype, seed: int) -> Case:
    return with_answers(make(dtype=dtype, seed=seed, **PROBLEMS[name]))


def worse_than_torch(got: Answer, truth: Answer, plain: Answer, dtype: torch.dtype) -> list[str]:
    """Return the names of the results whose error is too large."""
    assert (got.logps <= 0).all()
    worse = []
    for field in fields(Answer):
        name = field.name
        mine, true, torchs = (getattr(answer, name) for answer in (got, truth, plain))
        if true is None:
            assert mine is None
        elif name == "is_top1":
            # Rounding may swap entries that are equal in the operands' precision.
            differs = mine.bool() != true.bool()
            assert int(differs.sum()) <= int((torchs != true).sum())
        elif error(mine, true) > allowed(torchs, true, dtype):
            worse.append(name)
    return worse


def assert_as_good_as_torch(
    answer: Callable[[Problem], Answer], case_of: Callable[[int], Case]
) -> None:
    """At most twice plain torch's error on the first problem, or else on most of `DRAWS`: of a few
    numbers, either may have the lucky or the unlucky roundings."""
    problem, truth, plain = case_of(0)
    dtype = problem.hidden.dtype
    worse = worse_than_torch(answer(problem), truth, plain, dtype)
    draws = [case_of(seed) for seed in range(DRAWS)] if worse else []
    answers = [(answer(problem), truth, plain) for problem, truth, plain in draws]
    for name in worse:
        each = [[getattr(one, name) for one in triple] for triple in answers]
        shares = [error(got, true) / allowed(torchs, true, dtype) for got, true, torchs in each]
        assert median(shares) <= 1, (name, shares)


def combinations() -> Iterator[tuple[str, str, torch.dtype, str]]:
    for variant, name, dtype, workspace in product(VARIANTS, PROBLEMS, DTYPES, WORKSPACES):
        if not variant.endswith("interpret") or (dtype, workspace) in INTERPRETED:
            yield variant, name, dtype, workspace


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize(
    ("backend", "name", "dtype", "workspace"), list(combinations()), indirect=["backend"], ids=str
)
def test_values_and_gradients(backend: str, name: str, dtype: torch.dtype, workspace: str) -> None:
    require(backend, dtype)
    assert_as_good_as_torch(
        lambda problem: run(problem, backend, WORKSPACES[workspace]),
        lambda seed: case(name, dtype, seed),
    )


@pytest.mark.usefixtures("nan_filled_memory", "isa")
@pytest.mark.parametrize("workspace", WORKSPACES)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_instruction_set(name: str, dtype: torch.dtype, workspace: str) -> None:
    assert_as_good_as_torch(
        lambda problem: run(problem, "cpu", WORKSPACES[workspace]),
        lambda seed: case(name, dtype, seed),
    )


@pytest.mark.parametrize("workspace", [None, 0], ids=["retained", "recomputed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_softcap_far_below_the_logits(
    backend: str, dtype: torch.dtype, workspace: int | None
) -> None:
    """Its derivative magnifies any rounding of the products: what is retained are logits."""
    require(backend, dtype)

    def case_of(seed: int) -> Case:
        problem = make(40, 3000, 32, dtype=dtype, logit_std=6.0, softcap=5.0, seed=seed)
        return with_answers(problem)

    assert_as_good_as_torch(lambda problem: run(problem, backend, workspace), case_of)


def test_same_bits_every_time(backend: str) -> None:
    require(backend, torch.bfloat16)
    problem = make(67, 5000, 48, dtype=torch.bfloat16, entropy=True, ignored=0.2)
    first, second = run(problem, backend, None), run(problem, backend, None)
    for field in fields(Answer):
        mine, again = getattr(first, field.name), getattr(second, field.name)
        assert mine is again is None or torch.equal(mine, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_entries_masked_by_an_infinite_bias(backend: str, dtype: torch.dtype) -> None:
    """The first tile has no probability at all; masked entries get no gradient and make no NaN."""
    require(backend, dtype)
    problem = make(17, 5000, 24, dtype=dtype, bias=True, entropy=True)
    assert problem.bias is not None
    masked = torch.arange(5000) < 2500
    bias = problem.bias.masked_fill(masked, -torch.inf)
    problem = replace(problem, bias=bias, targets=2500 + problem.targets % 2500)
    got = run(problem, backend, None)
    kept = replace(
        problem, weight=problem.weight[2500:], bias=bias[2500:], targets=problem.targets - 2500
    )
    truth, plain = dense(kept.to(torch.float64)), dense(kept)
    for name in ("logps", "entropy", "dhidden"):
        mine, true = getattr(got, name), getattr(truth, name)
        assert error(mine, true) <= allowed(getattr(plain, name), true, dtype), name
    assert error(got.dweight[2500:], truth.dweight) <= allowed(plain.dweight, truth.dweight, dtype)
    assert not got.dweight[:2500].any()


def test_half_precision_survives_a_loss_scaler(backend: str) -> None:
    require(backend, torch.float16)
    problem = make(21, 3000, 32, dtype=torch.float16)
    assert problem.dlogp is not None
    scaled = replace(problem, dlogp=problem.dlogp * 65536)
    got, truth = run(scaled, backend, None), dense(scaled.to(torch.float64))
    unscaled, plain = dense(problem.to(torch.float64)), dense(problem)
    assert got.dhidden.isfinite().all() == (truth.dhidden.abs().max() < 65504)
    small = truth.dweight.abs() < 60000
    scale = float(truth.dweight[small].abs().max())
    worst = float((got.dweight.double() - truth.dweight)[small].abs().max()) / scale
    assert worst <= 2 * allowed(plain.dweight, unscaled.dweight, torch.float16)


def _views(tensor: Tensor) -> Tensor:
    """Return the same values with an offset and strides."""
    wide = torch.empty(tensor.shape[0] + 3, tensor.shape[1] * 2 + 1, dtype=tensor.dtype)
    view = wide[2:-1, 1::2]
    return view.copy_(tensor)


def test_strided_operands(backend: str) -> None:
    require(backend, torch.float32)
    problem = make(33, 3000, 40)
    strided = replace(
        problem, hidden=_views(problem.hidden), weight=problem.weight.T.contiguous().T
    )
    assert not strided.hidden.is_contiguous() and not strided.weight.is_contiguous()
    options = {"backend": backend}
    straight = linear_token_stats(problem.hidden, problem.weight, problem.targets, **options)
    got = linear_token_stats(strided.hidden, strided.weight, problem.targets, **options)
    for field in fields(straight):
        assert torch.equal(getattr(got, field.name), getattr(straight, field.name)), field.name
    truth, plain = dense(problem.to(torch.float64)), dense(problem)
    assert worse_than_torch(run(strided, backend, None), truth, plain, torch.float32) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["plain", "one_row", "softcap"])
def test_a_single_tile_writes_dhidden(
    backend: str, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where one tile holds the vocabulary of a few rows."""
    if backend == "cpu":
        pytest.skip("its kernels add to dhidden")
    module = backends.get(backend)
    traits = replace(module.traits("cpu"), dense_width=1 << 20, writes_dhidden=True)
    monkeypatch.setattr(module, "traits", lambda _: traits)
    assert_as_good_as_torch(
        lambda problem: run(problem, backend, None), lambda seed: case(name, dtype, seed)
    )
