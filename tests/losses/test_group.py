"""InfoNCA, NCA and EXO on K responses, against loops, their limits and extremes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from rao_kernels.losses import LOSSES, LossInputs

from .cases import coefficients, make, ratios

LENGTHS = (5, 1, 7, 3, 2, 4)
GROUPS = (0, 1, 0, 2, 2, 0)
BETA, ALPHA = 0.4, 0.6


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    total = math.fsum(math.exp(v - top) for v in values)
    return [math.exp(v - top) / total for v in values]


def prompts(inputs: LossInputs) -> Iterator[tuple[list[int], list[float], list[float]]]:
    """Return the members of each prompt, with their beta D and softmax(r / alpha)."""
    assert inputs.rewards is not None
    d, r = ratios(inputs), inputs.rewards.tolist()
    for group in sorted(set(GROUPS)):
        members = [s for s, g in enumerate(GROUPS) if g == group]
        target = softmax([r[s] / ALPHA for s in members])
        yield members, [BETA * d[s] for s in members], target


def infonca(a: list[float], p: list[float]) -> tuple[float, list[float]]:
    q = softmax(a)
    value = -math.fsum(x * math.log(y) for x, y in zip(p, q, strict=True))
    return value, [BETA * (y - x) for x, y in zip(p, q, strict=True)]


def nca(a: list[float], p: list[float]) -> tuple[float, list[float]]:
    k = len(a)
    value = math.fsum(x * softplus(-u) + softplus(u) / k for x, u in zip(p, a, strict=True))
    slopes = [BETA * (sigmoid(u) / k - x * sigmoid(-u)) for x, u in zip(p, a, strict=True)]
    return value, slopes


def exo(a: list[float], p: list[float]) -> tuple[float, list[float]]:
    q = softmax(a)
    gaps = [math.log(y) - math.log(x) for x, y in zip(p, q, strict=True)]
    value = math.fsum(y * g for y, g in zip(q, gaps, strict=True))
    return value, [BETA * y * (g - value) for y, g in zip(q, gaps, strict=True)]


LOOPS = {"infonca": infonca, "nca": nca, "exo": exo}
names = pytest.mark.parametrize("name", LOOPS)


def found(name: str, inputs: LossInputs, **hyper: Any) -> tuple[float, list[float], list[float]]:
    tokens = inputs.token_logps.clone().requires_grad_()
    inputs = replace(inputs, token_logps=tokens)
    out = LOSSES[name](inputs, **{"beta": BETA, "alpha": ALPHA, **hyper})
    slopes = coefficients(out.loss, tokens, inputs)
    return out.loss.item(), out.values.tolist(), slopes


@names
@pytest.mark.parametrize("seed", range(2))
def test_value_and_gradient(name: str, seed: int) -> None:
    inputs = make(GROUPS, lengths=LENGTHS, seed=seed)
    values, slopes, losses = [0.0] * 6, [0.0] * 6, []
    for members, a, p in prompts(inputs):
        value, c = LOOPS[name](a, p)
        losses.append(value)
        for s, x in zip(members, c, strict=True):
            values[s], slopes[s] = value, x / 3
    loss, got, gradient = found(name, inputs)
    assert loss == pytest.approx(math.fsum(losses) / 3, rel=1e-12)
    assert got == pytest.approx(values, rel=1e-12, abs=1e-15)
    assert gradient == pytest.approx(slopes, rel=1e-11, abs=1e-15)


@pytest.mark.parametrize("name", ["infonca", "exo"])
def test_coefficients_of_a_prompt_sum_to_zero(name: str) -> None:
    slopes = found(name, make(GROUPS, lengths=LENGTHS))[2]
    for group in range(3):
        assert math.fsum(c for c, g in zip(slopes, GROUPS, strict=True) if g == group) == (
            pytest.approx(0, abs=1e-15)
        )


@pytest.mark.parametrize("name", ["infonca", "exo"])
def test_a_constant_on_all_ratios_of_a_prompt_changes_nothing(name: str) -> None:
    inputs = make(GROUPS, lengths=LENGTHS)
    assert inputs.ref_logps is not None
    shift = torch.tensor([5.0, -3.0, 11.0], dtype=torch.float64)[torch.tensor(GROUPS)]
    shifted = replace(inputs, ref_logps=inputs.ref_logps + shift)
    assert found(name, shifted)[0] == pytest.approx(found(name, inputs)[0], rel=1e-12)
    assert found("nca", shifted)[0] != pytest.approx(found("nca", inputs)[0])


@names
def test_a_constant_on_all_rewards_of_a_prompt_changes_nothing(name: str) -> None:
    inputs = make(GROUPS, lengths=LENGTHS)
    assert inputs.rewards is not None
    shift = torch.tensor([5.0, -3.0, 11.0], dtype=torch.float64)[torch.tensor(GROUPS)]
    shifted = replace(inputs, rewards=inputs.rewards + shift)
    assert found(name, shifted)[0] == pytest.approx(found(name, inputs)[0], rel=1e-12)


def test_one_hot_pairs_are_dpo_and_nca_pair() -> None:
    inputs = make(lengths=LENGTHS)
    assert inputs.preferred is not None
    sharp = replace(inputs, rewards=inputs.preferred.double())
    for name, pair in (("infonca", "sigmoid"), ("nca", "nca_pair")):
        expected = LOSSES[pair](inputs, beta=0.4).loss
        loss = LOSSES[name](sharp, beta=0.4, alpha=1e-3).loss
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_exo_is_a_divergence() -> None:
    """Zero, without gradient, exactly where beta D and r / alpha differ by a constant."""
    inputs = make(GROUPS, lengths=LENGTHS)
    assert inputs.rewards is not None
    wanted = replace(inputs, ref_logps=inputs.logps - inputs.rewards * BETA**-1 / ALPHA - 3)
    loss, _, slopes = found("exo", wanted)
    assert loss == pytest.approx(0, abs=1e-14)
    assert slopes == pytest.approx([0] * 6, abs=1e-14)
    assert found("exo", inputs)[0] > 0


def test_nca_does_not_couple_responses() -> None:
    inputs = make(GROUPS, lengths=LENGTHS)
    assert inputs.ref_logps is not None
    moved = inputs.ref_logps.clone()
    moved[2] += 5
    others = [0, 1, 3, 4, 5]
    before, after = found("nca", inputs)[2], found("nca", replace(inputs, ref_logps=moved))[2]
    assert [before[i] for i in others] == [after[i] for i in others]


@names
def test_equal_rewards(name: str) -> None:
    inputs = make(GROUPS, lengths=LENGTHS)
    loss, _, slopes = found(name, replace(inputs, rewards=torch.zeros(6, dtype=torch.float64)))
    assert math.isfinite(loss)
    if name != "nca":
        assert slopes[1] == pytest.approx(0, abs=1e-15)


@names
def test_sharp_targets_and_extreme_ratios(name: str) -> None:
    """Probabilities that underflow times logarithms of -1e8 are 0, not NaN."""
    inputs = make(GROUPS, lengths=(1,) * 6, dtype=torch.float32)
    ratio = torch.tensor([1e4, 0.0, -1e4, -1e4, 1e4, 0.0])
    tokens = torch.full((6,), -1e4)
    inputs = replace(inputs, token_logps=tokens, ref_logps=tokens - ratio)
    loss, _, slopes = found(name, inputs, beta=1.0, alpha=1e-4)
    assert math.isfinite(loss)
    assert all(map(math.isfinite, slopes))
