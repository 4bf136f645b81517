"""GRAO against loops and in its limits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rao_kernels.losses import LOSSES, LossInputs

from .policy_loops import (
    GOLD,
    check,
    clipped_loop,
    gradient,
    grao_inputs,
    groups_of,
    responses,
    standardized,
)


def grao_loop(inputs: LossInputs, beta: float, lam: float, eps: float) -> tuple[float, list[float]]:
    assert inputs.rewards is not None
    r, total, expected = inputs.rewards.tolist(), [], [0.0] * inputs.token_logps.numel()
    texts = responses(inputs)
    for members in groups_of(inputs):
        samples = [s for s in members if not GOLD[s]]
        (gold,) = [s for s in members if GOLD[s]]
        mean = math.fsum(r[s] for s in samples) / len(samples)
        std = math.sqrt(math.fsum((r[s] - mean) ** 2 for s in samples) / len(samples))
        a = {s: (r[s] - mean) / (std + eps) for s in members}

        def level(s: int) -> float:
            return math.fsum(texts[s].logps) / len(texts[s].logps)

        value = beta * a[gold] * level(gold)
        for s in samples:
            value += a[s] * level(s) / len(samples)
            value += lam * a[s] * (level(s) - level(gold)) / len(samples)
        total.append(-value / 2)
        drift = math.fsum(a[s] for s in samples) / len(samples)
        for s in members:
            c = beta * a[s] - lam * drift if s == gold else (1 + lam) * a[s] / len(samples)
            for t in texts[s].where:
                expected[t] = -c / len(texts[s].where) / 2
    return math.fsum(total), expected


def test_grao() -> None:
    inputs = grao_inputs()
    check(gradient("grao", inputs), grao_loop(inputs, 0.5, 0.6, 1e-4))
    check(gradient("grao", inputs, beta=1.0, lam=0.2, eps=0.1), grao_loop(inputs, 1.0, 0.2, 0.1))


@pytest.mark.parametrize(("inside", "expected"), [(False, 1e4), (True, 8**0.5)])
def test_grao_with_the_gold_answer_in_the_statistics(inside: bool, expected: float) -> None:
    """Eight samples of reward 0 and a gold answer of 1: its advantage is 1 / eps, or sqrt 8."""
    inputs = LossInputs(
        token_logps=-torch.ones(9, dtype=torch.float64),
        segments=torch.arange(9),
        num_sequences=9,
        rewards=torch.tensor([1.0] + [0.0] * 8),
        gold=torch.arange(9) == 0,
        groups=torch.zeros(9, dtype=torch.int64),
    )
    out = LOSSES["grao"](inputs, gold_in_statistics=inside)
    assert out.metrics["grao/gold_advantage"].item() == pytest.approx(expected, rel=1e-3)


def test_grao_collapses() -> None:
    """Centred advantages sum to zero: the regulariser only rescales the exploration."""
    inputs = grao_inputs()
    plain = LOSSES["grao"](inputs, beta=0.5, lam=0.0).loss
    imitation = plain - LOSSES["grao"](inputs, beta=1e-300, lam=0.0).loss
    whole = LOSSES["grao"](inputs, beta=0.5, lam=0.6).loss
    torch.testing.assert_close(whole, 1.6 * (plain - imitation) + imitation)


def test_grao_of_given_advantages_that_are_not_centred() -> None:
    inputs = replace(grao_inputs(), advantages=torch.ones(6, dtype=torch.float64))
    found = gradient("grao", inputs, beta=0.5, lam=0.6)[1]
    texts = responses(inputs)
    for s, gold in enumerate(GOLD.tolist()):
        share = -(0.5 - 0.6) if gold else -1.6 / 2
        for t in texts[s].where:
            assert found[t] == pytest.approx(share / len(texts[s].where) / 2)


def test_grao_without_a_gold_answer_or_without_samples() -> None:
    inputs = grao_inputs()
    explored = replace(inputs, gold=torch.zeros(6, dtype=torch.bool))
    expected = clipped_loop(
        replace(explored, old_token_logps=None),
        standardized(inputs, 1e-4, population=True),
        level="token",
        mean="sequence",
    )
    found = gradient("grao", explored, lam=0.0)
    assert found[1] == pytest.approx(expected[1], rel=1e-11)
    only = replace(inputs, gold=torch.ones(6, dtype=torch.bool))
    assert gradient("grao", only) == (0.0, [0.0] * 22)


def test_grao_with_equal_rewards_imitates_within_eps() -> None:
    inputs = grao_inputs()
    rewards = torch.where(GOLD, 1.0, 0.0).double()
    loss, found = gradient("grao", replace(inputs, rewards=rewards), eps=0.5)
    texts = responses(inputs)
    assert math.isfinite(loss)
    for s, gold in enumerate(GOLD.tolist()):
        for t in texts[s].where:
            assert found[t] == pytest.approx(-0.5 * 2 / len(texts[s].where) / 2 if gold else 0)
