"""Call a backend's functions as the engine does, on cases of any layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from statistics import median

import torch
from torch import Tensor

from rao_kernels.backends import (
    Gradients,
    Head,
    RetainedSlot,
    RowGradients,
    RowState,
    Tile,
    cpu,
    eager,
)

from ..cases import FLOOR, error


@dataclass(frozen=True)
class Case:
    """One head, cut into tiles, with all inputs of the two operations.

    dhidden_row: the row of dhidden that belongs to each row; None = the same row. misaligned: the
    gradients begin one element beyond a multiple of 64 bytes.
    """

    head: Head
    cut: list[Tile]
    logp_grad: Tensor
    p_factor: Tensor | None
    p_log_p_factor: Tensor | None
    dhidden_row: Tensor | None = None
    misaligned: bool = False

    def to(self, dtype: torch.dtype) -> Case:
        head = self.head
        wide = {
            name: None if (tensor := getattr(head, name)) is None else tensor.to(dtype)
            for name in ("hidden", "weight", "bias")
        }
        gradients = {
            name: None if (tensor := getattr(self, name)) is None else tensor.double()
            for name in ("logp_grad", "p_factor", "p_log_p_factor")
        }
        return replace(self, head=replace(head, **wide), **gradients)


def make_case(
    rows: int,
    size: int,
    entries: int,
    width: int,
    dtype: torch.dtype,
    *,
    weight_dtype: torch.dtype | None = None,
    spread: float = 2.0,
    bias: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    plain: bool = False,
    scattered: bool = False,
) -> Case:
    """Return a random case.

    plain: no gradient of entropy or lse. scattered: entries of a tile and rows of dhidden in any
    order.
    """
    head = Head(
        hidden=torch.randn(rows, size).to(dtype),
        weight=(torch.randn(entries, size) * spread / size**0.5).to(weight_dtype or dtype),
        bias=torch.randn(entries).to(dtype) if bias else None,
        targets=torch.randint(0, entries, (rows,)),
        scale=scale,
        softcap=softcap,
    )
    cut = [Tile(start, min(start + width, entries)) for start in range(0, entries, width)]
    order, dhidden_row = None, None
    if scattered:
        order, dhidden_row = torch.randperm(entries), torch.randperm(rows)
        cut = [tile._replace(entries=order[tile.start : tile.stop]) for tile in cut]
    gradients = (torch.randn(rows) for _ in range(1 if plain else 3))
    return Case(head, cut, *[*gradients, None, None][:3], dhidden_row)


def misplaced(tensor: Tensor) -> Tensor:
    """Return a contiguous copy that begins one element beyond a multiple of 64 bytes."""
    memory = torch.empty(tensor.numel() + 65, dtype=tensor.dtype)
    first = 1 + -memory.data_ptr() % 64 // tensor.itemsize
    return memory[first : first + tensor.numel()].view(tensor.shape).copy_(tensor)


@dataclass(frozen=True)
class Result:
    """The results of a forward and a backward walk."""

    row_max: Tensor
    row_sum: Tensor
    target_logit: Tensor
    entropy_sum: Tensor
    sum_sq_probs: Tensor
    logit_sum: Tensor
    dhidden: Tensor
    dweight: Tensor
    dbias: Tensor
    retained: list[RetainedSlot]


def score(
    backend: object, case: Case, *, retain: bool
) -> tuple[RowState, list[RetainedSlot | None]]:
    """Run forward over all rows, on the case's tiles."""
    head, dtype = case.head, case.head.accumulator

    # Uninitialised: the first tile writes them.
    state = RowState(*(torch.full((head.rows,), 7.0, dtype=dtype) for _ in fields(RowState)))
    slots: list[RetainedSlot | None] = [None] * len(case.cut)
    if retain:
        slots = [
            RetainedSlot(torch.full((size,), 0xFF, dtype=torch.uint8), head.rows)
            for tile in case.cut
            for size in [backend.retained_bytes(head.rows, tile.width, head.precision)]
        ]
    scratch = backend.scratch(head, case.cut[0].width, backward=False)
    backend.begin(head, scratch, backward=False)
    for tile, slot in zip(case.cut, slots, strict=True):
        backend.score_tile(head, tile, state, slot, scratch, tile.start == 0)
    return state, slots


def walk(backend: object, case: Case, *, retain: bool, kept_rows: Tensor | None = None) -> Result:
    """Run forward over all rows and backward over `kept_rows`, on the case's tiles."""
    state, slots = score(backend, case, retain=retain)
    out = differentiate(backend, case, state, slots, kept_rows)
    values = {field.name: getattr(state, field.name) for field in fields(RowState)}
    return Result(
        **values,
        dhidden=out.dhidden,
        dweight=out.dweight,
        dbias=out.dbias,
        retained=[slot for slot in slots if slot is not None],
    )


def differentiate(
    backend: object,
    case: Case,
    state: RowState,
    slots: list[RetainedSlot | None],
    kept_rows: Tensor | None,
) -> Gradients:
    head = case.head
    log_sum = state.row_sum.log()
    logp = (state.target_logit - state.row_max) - log_sum

    def pick(values: Tensor | None) -> Tensor | None:
        return values if kept_rows is None or values is None else values[kept_rows]

    retains = any(slot is not None for slot in slots)
    rows = RowGradients(
        row_max=pick(state.row_max),
        log_sum=pick(log_sum),
        logp=pick(logp),
        logp_grad=pick(case.logp_grad),
        p_factor=pick(case.p_factor),
        p_log_p_factor=pick(case.p_log_p_factor),
        retained_row=kept_rows if retains else None,
    )
    copied = misplaced if case.misaligned else torch.clone
    count = head.rows if case.dhidden_row is not None or kept_rows is None else len(kept_rows)
    dhidden = torch.ones(count, head.hidden.shape[1], dtype=head.accumulator)
    head = replace(head, hidden=pick(head.hidden), targets=pick(head.targets))
    out = Gradients(
        dhidden=copied(dhidden),
        dweight=copied(torch.full(head.weight.shape, torch.nan, dtype=head.weight.dtype)),
        dbias=torch.full((head.weight.shape[0],), torch.nan, dtype=head.accumulator),
        unscale=torch.tensor(0.5, dtype=head.accumulator),
        dhidden_row=pick(case.dhidden_row),
    )
    scratch = backend.scratch(head, case.cut[0].width, backward=True)
    backend.begin(head, scratch, backward=True)
    for tile, slot in zip(case.cut, slots, strict=True):
        backend.grad_tile(head, tile, rows, slot, out, scratch)
    return out


def assert_as_good_as_eager(
    case_of: Callable[[], Case],
    *,
    retain: bool = False,
    kept_rows: Tensor | None = None,
    factor: float = 2.0,
    backend: object = cpu,
) -> None:
    """Assert errors of at most `factor` times eager's, on the first draw or else on most of 15.

    One draw does not decide: for few numbers, or sums of large terms that cancel, rounding errors
    vary by chance.
    """

    def shares() -> dict[str, float]:
        return shares_of_the_limit(case_of(), retain, kept_rows, factor, backend)

    worse = [name for name, share in shares().items() if not share <= 1]
    draws = [shares() for _ in range(15)] if worse else []
    for name in worse:
        assert median(draw[name] for draw in draws) <= 1, name


def shares_of_the_limit(
    case: Case,
    retain: bool,
    kept_rows: Tensor | None,
    factor: float = 2.0,
    backend: object = cpu,
) -> dict[str, float]:
    """Return each result's error over its limit: `factor` times eager's error plus `FLOOR`."""
    truth = walk(eager, case.to(torch.float64), retain=False, kept_rows=kept_rows)
    plain = walk(eager, case, retain=retain, kept_rows=kept_rows)
    got = walk(backend, case, retain=retain, kept_rows=kept_rows)
    shares = {}
    for name in (field.name for field in fields(Result) if field.name != "retained"):
        mine, true = getattr(got, name), getattr(truth, name)
        limit = factor * error(getattr(plain, name), true) + FLOOR[case.head.hidden.dtype]
        shares[name] = error(mine, true) / limit
    return shares


def assert_same_bits(first: Result, second: Result) -> None:
    """Assert equal bits, except for the payload of a NaN."""
    for name in (field.name for field in fields(Result) if field.name != "retained"):
        a, b = getattr(first, name), getattr(second, name)
        assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num()), (
            name
        )
