"""fp32 and fp16 operands as sums of bf16 parts: how precise that is, and what does not go so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median

import pytest
import torch

from rao_kernels.backends import cpu, eager

from ..cases import error
from .tile_walk import Case, make_case, walk

pytestmark = pytest.mark.usefixtures("amx", "poisoned_memory")
STATISTICS = ("row_max", "row_sum", "target_logit", "entropy_sum", "square_sum", "logit_sum")
GRADIENTS = ("dhidden", "dweight", "dbias")
# Errors of this size are a rounding of the largest result.
FLOOR = 2.0**-23


def in_float32(case: Case) -> Case:
    head = case.head
    return replace(case, head=replace(head, hidden=head.hidden.float(), weight=head.weight.float()))


def assert_as_good_as_float32(
    case_of: Callable[[], Case], names: tuple[str, ...], *, retain: bool = False
) -> None:
    """The error is at most twice that of plain torch in fp32, on most of 5 draws."""
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
    ("rows", "size", "words"),
    [(40, 64, 4096), (40, 576, 300), (33, 1536, 300), (32, 4096, 128), (1700, 33, 96)],
)
@pytest.mark.parametrize("retain", [False, True], ids=["recomputed", "retained"])
def test_float32_is_as_good_as_plain_torch(rows: int, size: int, words: int, retain: bool) -> None:
    """However long the sums are: over D in a logit, over words in dhidden, over rows in dweight."""
    assert_as_good_as_float32(
        lambda: make_case(rows, size, words, 1024, torch.float32),
        STATISTICS + GRADIENTS,
        retain=retain,
    )


@pytest.mark.parametrize("size", [64, 576, 4096])
def test_float16_has_statistics_of_float32(size: int) -> None:
    assert_as_good_as_float32(lambda: make_case(40, size, 160, 160, torch.float16), STATISTICS)
