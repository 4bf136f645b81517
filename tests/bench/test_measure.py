"""Figures of known calls."""

from __future__ import annotations

import torch

from rao_kernels import _memory
from rao_kernels.bench import measure
from rao_kernels.bench.cases import BOTH, OP
from rao_kernels.bench.providers import Outcome

from .tiny import tiny_problem

CPU = torch.device("cpu")
PLAIN = {"logp_error": 1e-2, "largest_logp": -1.0, "dhidden_error": 1e-3, "dweight_error": 1e-3}


def test_rounds_are_interleaved_and_the_first_is_left_out() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    seconds = measure.interleaved(calls, 3)
    assert order == ["a", "b"] * 4
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}


def test_spread() -> None:
    found = measure.spread([float(number) for number in range(11)])
    assert found == {"q10_s": 1.0, "median_s": 5.0, "q90_s": 9.0}
    assert measure.spread([2.0]) == {"q10_s": 2.0, "median_s": 2.0, "q90_s": 2.0}


def test_peak_counts_what_is_alive_at_once_less_dweight() -> None:
    def call() -> Outcome:
        torch.zeros(1 << 20)  # gone at once
        kept = torch.zeros(2 << 20)
        return Outcome(kept[:1], None, torch.zeros(1 << 20))

    assert measure.peak_extra_bytes(call, CPU) == 4 * (2 << 20)


def test_growth_of_the_process() -> None:
    grown = measure.peak_rss_growth(lambda: torch.ones(16 << 20))
    assert grown is None or 0.9 * (64 << 20) < grown < 1.5 * (64 << 20)


def test_memory_that_is_used_again_counts() -> None:
    """As if each call were the first."""
    nbytes = _memory.THRESHOLD

    def call() -> Outcome:
        return Outcome(_memory.empty((nbytes,), torch.uint8, CPU).fill_(1), None, None)

    call()
    assert measure.peak_extra_bytes(call, CPU) == nbytes
    call()
    grown = measure.peak_rss_growth(call)
    assert grown is None or grown > 0.9 * nbytes


def test_errors_of_the_truth_are_zero() -> None:
    problem = tiny_problem()
    truth = problem.truth
    found = measure.errors(Outcome(truth.value, truth.dhidden, 2 * truth.dweight), problem)
    assert found["logp_error"] == found["dhidden_error"] == 0.0
    assert abs(found["dweight_error"] - 1) < 1e-6
    assert problem.task == OP and BOTH


def test_who_is_right() -> None:
    assert measure.is_right(PLAIN, PLAIN, 1.0)
    for key in ("logp_error", "dhidden_error", "dweight_error"):
        assert not measure.is_right(PLAIN | {key: 1.2 * PLAIN[key]}, PLAIN, 1.1)
        assert measure.is_right(PLAIN | {key: 1.2 * PLAIN[key]}, PLAIN, 2.0)
    assert not measure.is_right(PLAIN | {"largest_logp": 1e-6}, PLAIN, 2.0)
    assert not measure.is_right(PLAIN | {"logp_error": float("nan")}, PLAIN, 2.0)


def test_values_in_half_precision_may_be_rounded() -> None:
    got = PLAIN | {"logp_error": 5e-2, "value_rounding": 4e-2}
    assert measure.is_right(got, PLAIN, 1.1)
    assert not measure.is_right(got | {"logp_error": 6e-2}, PLAIN, 1.1)


def test_a_loss_may_be_as_far_off_as_plain_log_probs_put_it() -> None:
    plain = {"loss_error": 0.0, "dhidden_error": 1e-3, "dweight_error": 1e-3}
    assert measure.is_right(plain | {"loss_error": 1e-3}, plain, 1.1, tolerance=1e-3)
    assert not measure.is_right(plain | {"loss_error": 2e-3}, plain, 1.1, tolerance=1e-3)
