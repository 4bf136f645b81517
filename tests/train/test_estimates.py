"""Estimates against their definitions, and over many draws against what they estimate."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from rao_kernels.train.estimates import (
    Estimate,
    compare_rewards,
    kl_of_samples,
    mean_over_prompts,
    ratio_over_prompts,
)

from .. import seeds


def test_means_and_their_errors_are_over_prompts() -> None:
    found = mean_over_prompts([[1.0, 3.0], [5.0], [0.0, 0.0, 3.0]])
    assert found.value == pytest.approx((2 + 5 + 1) / 3)
    assert found.std_error == pytest.approx(numpy.std([2, 5, 1], ddof=1) / math.sqrt(3))
    assert mean_over_prompts([[1.0, 2.0]]) == Estimate(1.5, None)
    assert str(Estimate(1.5, None)) == "1.5000" and str(Estimate(1.5, 0.25)) == "1.5000 ± 0.2500"


def test_error_of_a_ratio_is_the_spread_over_many_draws() -> None:
    generator = seeds.numpy_generator(1)
    values, errors = [], []
    for _ in range(400):
        counts = generator.integers(1, 9, 60)
        sums = 0.7 * counts + generator.normal(0, 1, 60) * numpy.sqrt(counts)
        found = ratio_over_prompts(sums.tolist(), counts.tolist())
        values.append(found.value)
        errors.append(found.std_error)
    # The deviation of 400 draws has a relative error of 3.5 %.
    assert numpy.mean(errors) == pytest.approx(numpy.std(values), rel=0.2)
    assert numpy.mean(values) == pytest.approx(0.7, abs=6 * numpy.std(values) / 20)


def test_kl_of_samples_by_hand_and_by_its_definition() -> None:
    logps = [[[-1.0, -2.0], [-0.5]], [[-3.0]]]
    others = [[[-1.5, -1.0], [-0.5]], [[-2.0]]]
    found = kl_of_samples(logps, others)
    # D: 0.5, -1; 0; -1. Means over the samples of a prompt first.
    assert found["k1_per_sequence"].value == pytest.approx((-0.25 - 1.0) / 2)
    assert found["k1_per_token"].value == pytest.approx(-1.5 / 4)
    k3 = [math.exp(-0.5) - 1 + 0.5, math.e - 2, 0.0, math.e - 2]
    assert found["k3_per_token"].value == pytest.approx(sum(k3) / 4)
    assert found["k3_per_sequence"].value == pytest.approx(((k3[0] + k3[1]) / 2 + k3[3]) / 2)


def test_k1_and_k3_have_the_kl_as_their_mean() -> None:
    generator = seeds.generator(3)
    p, q = (torch.randn(12, generator=generator, dtype=torch.float64).softmax(0) for _ in range(2))
    kl = float((p * (p / q).log()).sum())
    drawn = torch.multinomial(p, 40_000, replacement=True, generator=generator).reshape(200, 200)
    found = kl_of_samples(p.log()[drawn][..., None].tolist(), q.log()[drawn][..., None].tolist())
    for name in ("k1_per_sequence", "k3_per_sequence", "k1_per_token", "k3_per_token"):
        assert found[name].std_error is not None
        assert abs(found[name].value - kl) < 5 * found[name].std_error, name


def test_comparison_by_hand() -> None:
    own = [[1.0, 3.0], [0.0], [2.0], [5.0]]
    others = [[1.0], [1.0], [2.0], [1.0]]
    found = compare_rewards(own, others, seed=0)
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.win_rate.value == pytest.approx(2.5 / 4)
    assert found.difference.value == pytest.approx((1 - 1 + 0 + 4) / 4)
    assert found == compare_rewards(own, others, seed=0)
    mirrored = compare_rewards(others, own, seed=0)
    assert mirrored.win_rate.value == pytest.approx(1 - found.win_rate.value)
    low, high = found.difference_interval
    assert mirrored.difference_interval == pytest.approx((-high, -low))


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator = seeds.numpy_generator(2)
    inside = 0
    for number in range(40):
        own = generator.normal(0.3, 1, (80, 1)).tolist()
        found = compare_rewards(own, [[0.0]] * 80, seed=number)
        low, high = found.difference_interval
        inside += low < 0.3 < high
        assert high - low == pytest.approx(2 * 1.96 * found.difference.std_error, rel=0.15)
    # Of 40 intervals of 95 % fewer than 32 hold it once in 1500 times.
    assert inside >= 32


def test_equal_models_tie_everywhere() -> None:
    found = compare_rewards([[1.0, 2.0]] * 5, [[2.0, 1.0]] * 5, seed=0)
    assert (found.ties, found.win_rate, found.win_rate_interval) == (
        5,
        Estimate(0.5, 0.0),
        (0.5, 0.5),
    )
