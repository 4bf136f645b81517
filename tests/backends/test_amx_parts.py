"""fp32 and fp16 operands as sums of bf16 parts: precision, and the fallback where parts fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import pytest
import torch
from torch import Tensor

from rao_kernels.backends import cpu, eager
from rao_kernels.engine import record_work
from rao_kernels.ops import linear_logprobs

from ..cases import error, make
from ..oracle import dense
from .test_contract import run, worse_than_torch
from .tile_walk import Case, make_case, score, shares_of_the_limit, walk

pytestmark = pytest.mark.usefixtures("amx", "nan_filled_memory")
STATISTICS = ("row_max", "row_sum", "target_logit", "entropy_sum", "sum_sq_probs", "logit_sum")
GRADIENTS = ("dhidden", "dweight", "dbias")
# Errors of this size are a rounding of the largest result.
FLOOR = 2.0**-23


def in_float32(case: Case) -> Case:
    head = case.head
    return replace(case, head=replace(head, hidden=head.hidden.float(), weight=head.weight.float()))


def assert_as_good_as_float32(
    case_of: Callable[[], Case], names: tuple[str, ...], *, retain: bool = False
) -> None:
    """Assert an error of at most twice that of plain torch in fp32, on most of 5 draws."""
    shares: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(5):
        case = case_of()
        truth = walk(eager, case.to(torch.float64), retain=False)
        plain = walk(eager, in_float32(case), retain=False)
        got = walk(cpu, case, retain=retain)
        for name in names:
            mine, torchs, true = (getattr(answer, name) for answer in (got, plain, truth))
            shares[name].append(error(mine, true) / (2 * error(torchs, true) + FLOOR))
    assert {name: median(each) for name, each in shares.items() if not median(each) <= 1} == {}


@pytest.mark.parametrize(
    ("rows", "size", "entries"),
    [(40, 64, 4096), (40, 576, 300), (33, 1536, 300), (32, 4096, 128), (4000, 33, 64)],
)
@pytest.mark.parametrize("retain", [False, True], ids=["recomputed", "retained"])
def test_float32_is_as_good_as_plain_torch(
    rows: int, size: int, entries: int, retain: bool
) -> None:
    """At any length of the sums: D of a logit, entries of dhidden, rows of dweight."""
    assert_as_good_as_float32(
        lambda: make_case(rows, size, entries, 1024, torch.float32),
        STATISTICS + GRADIENTS,
        retain=retain,
    )


@pytest.mark.parametrize("size", [64, 576, 4096])
def test_float16_has_statistics_of_float32(size: int) -> None:
    assert_as_good_as_float32(lambda: make_case(40, size, 160, 160, torch.float16), STATISTICS)


def filled(case: Case) -> list[bool]:
    """Return for each tile True if AMX retained it, from the first byte of its slot."""
    _, slots = score(cpu, case, retain=True)
    return [bool(slot.memory[0]) for slot in slots if slot is not None]


def of_bits(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


# The largest float below the midpoint of bf16's largest number and the next; that midpoint.
LARGEST, TOO_LARGE = of_bits(0x7F7F7FFF), of_bits(0x7F7F8000)
SMALLEST, TOO_SMALL = 2.0**-103, of_bits(0x0BFFFFFF)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("value", "exact"),
    [
        (0.0, True),
        (LARGEST, True),
        (TOO_LARGE, False),
        (torch.finfo(torch.float32).max, False),
        (torch.inf, False),
        (torch.nan, False),
        (SMALLEST, True),
        (TOO_SMALL, False),
        (2.0**-149, False),
    ],
)
def test_values_that_parts_do_not_represent_fall_back(
    value: float, exact: bool, sign: float
) -> None:
    """All tiles for a value in hidden; for one in the weight, only the tile that has it."""
    for row, column in itertools.product((0, 17, 39), (0, 64, 69)):
        case = make_case(40, 70, 150, 64, torch.float32)
        case.head.hidden[row, column] = sign * value
        assert filled(case) == [exact] * 3
    for entry, column in itertools.product((64, 90, 127), (0, 64, 69)):
        case = make_case(40, 70, 150, 64, torch.float32)
        case.head.weight[entry, column] = sign * value
        assert filled(case) == [True, exact, True]


@pytest.mark.parametrize(
    ("value", "exact"), [(2.0**-24, True), (65504.0, True), (torch.inf, False)]
)
def test_float16_falls_back_only_where_it_is_not_finite(value: float, exact: bool) -> None:
    case = make_case(40, 70, 150, 64, torch.float16)
    case.head.weight[90, 5] = value
    assert filled(case) == [True, exact, True]


def huge_in_hidden() -> Case:
    """Return a case with a huge value in hidden, where the weight is 0."""
    case = make_case(40, 33, 150, 64, torch.float32)
    case.head.weight[:, 5] = 0.0
    case.head.hidden[7, 5] = 3.4e38
    case.logp_grad[7] = case.p_factor[7] = case.p_log_p_factor[7] = 2.0**-20
    return case


def huge_in_one_tile_of_the_weight() -> Case:
    case = make_case(40, 33, 150, 64, torch.float32)
    case.head.hidden[:, 5] = 0.0
    case.head.weight[90, 5] = 3.4e38
    return case


def tiny_in_hidden() -> Case:
    case = make_case(40, 33, 150, 64, torch.float32)
    head = case.head
    small = replace(head, hidden=head.hidden * 2.0**-112, weight=head.weight * 2.0**112)
    return replace(case, head=small)


def tiny_in_the_weight() -> Case:
    case = make_case(40, 33, 150, 64, torch.float32)
    head = case.head
    small = replace(head, hidden=head.hidden * 2.0**112, weight=head.weight * 2.0**-112)
    return replace(case, head=small)


def with_gradient(size: float, *, cancels: bool = False) -> Callable[[], Case]:
    """Return a maker of cases with row gradients of that size. cancels: only at the target."""

    def make_one() -> Case:
        case = make_case(40, 33, 150, 64, torch.float32, spread=0.1, plain=not cancels)
        head = replace(case.head, hidden=case.head.hidden / 100)
        case = replace(case, head=replace(head, targets=torch.randperm(150)[:40]))
        logp_grad = case.logp_grad.clamp(0.9, 1) * size
        if not cancels:
            return replace(case, logp_grad=logp_grad)
        return replace(
            case,
            logp_grad=logp_grad,
            p_factor=logp_grad.clone(),
            p_log_p_factor=torch.zeros_like(logp_grad),
        )

    return make_one


HARD = {
    "huge hidden": huge_in_hidden,
    "huge weight": huge_in_one_tile_of_the_weight,
    "tiny hidden": tiny_in_hidden,
    "tiny weight": tiny_in_the_weight,
    "tiny gradient": with_gradient(2.0**-112),
    "huge gradient": with_gradient(3.4e38),
    "tiny gradient of the target": with_gradient(2.0**-112, cancels=True),
    "huge gradient of the target": with_gradient(3.4e38, cancels=True),
}


@pytest.mark.parametrize("retain", [False, True], ids=["recomputed", "retained"])
@pytest.mark.parametrize("which", HARD)
def test_hard_operands_are_as_good_as_eager(which: str, retain: bool) -> None:
    kept_rows = torch.arange(1, 40, 3)
    for kept in (None, kept_rows):
        shares = shares_of_the_limit(HARD[which](), retain, kept)
        assert {name: share for name, share in shares.items() if not share <= 1} == {}


@pytest.mark.parametrize("retain", [False, True], ids=["recomputed", "retained"])
def test_a_bad_row_that_backward_skips(retain: bool) -> None:
    """Forward falls back and retains nothing; backward, without the row, does not fall back."""
    kept_rows = torch.tensor([0, 2, 3, 31, 33, 39])
    shares = shares_of_the_limit(huge_in_hidden(), retain, kept_rows)
    assert {name: share for name, share in shares.items() if not share <= 1} == {}


@pytest.mark.parametrize("retain", [False, True], ids=["recomputed", "retained"])
def test_a_bad_row_does_not_affect_others(retain: bool) -> None:
    case = make_case(40, 33, 150, 64, torch.float32)
    case.head.hidden[7, 3] = torch.nan
    case.head.hidden[35, 32] = torch.inf
    got, truth = (
        walk(backend, one, retain=retain)
        for backend, one in ((cpu, case), (eager, case.to(torch.float64)))
    )
    assert got.row_sum[7].isnan() and got.row_sum[35].isnan()
    assert got.dhidden[7].isnan().all() and got.dhidden[35].isnan().all()
    good = torch.ones(40, dtype=torch.bool)
    good[[7, 35]] = False
    for name in ("row_max", "row_sum", "target_logit", "entropy_sum", "dhidden"):
        mine, true = getattr(got, name)[good], getattr(truth, name)[good]
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=1e-4)


def test_an_infinite_weight_whose_logit_is_minus_infinity() -> None:
    case = make_case(40, 33, 150, 64, torch.float32)
    case.head.hidden[:, 5] = -1.0
    case.head.weight[90, 5] = torch.inf
    case.head.targets[case.head.targets == 90] = 3
    got, truth = walk(cpu, case, retain=True), walk(eager, case.to(torch.float64), retain=False)
    for name in ("row_max", "row_sum", "target_logit", "sum_sq_probs", "dbias"):
        assert error(getattr(got, name), getattr(truth, name)) < 1e-5, name
    others = torch.arange(33) != 5
    assert error(got.dhidden[:, others], truth.dhidden[:, others]) < 1e-5


@pytest.mark.parametrize(
    "workspace_bytes", [None, 0, 1 << 19], ids=["retained", "recomputed", "partly"]
)
def test_hard_operands_through_the_op(workspace_bytes: int | None) -> None:
    problem = make(37, 5000, 48, entropy=True, bias=True)
    problem.hidden[:, 3] = 0.0
    problem.weight[4000, 3] = 3.4e38
    problem.weight[:, 7] = 0.0
    problem.hidden[9, 7] = -3.4e38
    truth, plain = dense(problem.to(torch.float64)), dense(problem)
    got = run(problem, "cpu", workspace_bytes)
    assert worse_than_torch(got, truth, plain, torch.float32) == []


def test_rows_that_the_sparse_backward_skips_may_be_bad() -> None:
    """A huge value in a row whose log-prob has no gradient."""
    problem = make(37, 5000, 48, logit_std=4.0)
    assert problem.dlogp is not None
    problem.weight[:, 7] = 0.0
    problem.hidden[9, 7] = 3.4e38
    silent = torch.arange(37) == 9
    problem = replace(problem, dlogp=problem.dlogp.masked_fill(silent, 0.0))
    truth, plain = dense(problem.to(torch.float64)), dense(problem)
    for workspace_bytes in (None, 0):
        leaves: list[Tensor] = [
            t.clone().requires_grad_() for t in (problem.hidden, problem.weight)
        ]
        options = {"grad_tolerance": 1e-30, "workspace_bytes": workspace_bytes, "backend": "cpu"}
        with record_work() as work:
            logps = linear_logprobs(*leaves, problem.targets, **options)
            (logps * problem.dlogp).sum().backward()
        assert work.rows_differentiated == 36
        for leaf, name in zip(leaves, ("dhidden", "dweight"), strict=True):
            mine, torchs, true = leaf.grad, getattr(plain, name), getattr(truth, name)
            assert error(mine, true) <= 2 * error(torchs, true) + 2e-6, name
