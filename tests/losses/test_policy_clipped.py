"""PPO's family against per-token loops, closed-form gradients and extremes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES, LossInputs

from .. import seeds
from .cases import GROUPED, make
from .policy_loops import (
    LEVELS,
    advantages_of,
    cases,
    centred,
    check,
    clipped_loop,
    extreme,
    gradient,
    left_out,
    ppo_inputs,
    responses,
    standardized,
)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("seed", range(3))
def test_defaults(name: str, seed: int) -> None:
    inputs = cases(seed=seed)
    expected = clipped_loop(inputs, advantages_of(name, inputs), **LEVELS[name])
    check(gradient(name, inputs), expected)


@pytest.mark.parametrize("name", LEVELS)
def test_clips(name: str) -> None:
    """Bounds are so narrow that both sides and, in some draws, the dual clip apply."""
    changes = []
    for seed in range(3, 9):
        inputs = cases(seed=seed)
        options = {**LEVELS[name], "low": 0.05, "high": 0.1, "dual": 1.01}
        expected = clipped_loop(inputs, advantages_of(name, inputs), **options)
        hyper = {"clip_low": 0.05, "clip_high": 0.1}
        check(gradient(name, inputs, **hyper, dual_clip=1.01), expected)
        changes.append(expected[0] != pytest.approx(gradient(name, inputs, **hyper)[0]))
    assert any(changes)


@pytest.mark.parametrize("name", [n for n in LEVELS if n != "rloo"])
def test_penalty(name: str) -> None:
    inputs = cases(seed=1)
    expected = clipped_loop(inputs, advantages_of(name, inputs), kl=0.3, **LEVELS[name])
    check(gradient(name, inputs, kl_beta=0.3), expected)


def test_options_of_advantages() -> None:
    inputs = cases()
    for eps, population in ((1e-6, False), (1e-2, True)):
        expected = clipped_loop(inputs, standardized(inputs, eps, population), **LEVELS["grpo"])
        check(gradient("grpo", inputs, eps=eps, population_std=population), expected)


def test_generation_budget() -> None:
    inputs = cases()
    expected = clipped_loop(inputs, centred(inputs), level="token", mean="sum", budget=512)
    check(gradient("dr_grpo", inputs, max_completion_length=512), expected)


def test_bnpo_averages_within_its_batch() -> None:
    """Batches under one normaliser give a mean of batch means, unlike DAPO's mean of tokens."""
    one, other = make(lengths=(5, 1) + (0,) * 4), make(lengths=(3, 3, 2, 4, 1, 1), seed=1)
    spec = LOSSES["bnpo"]
    total = sum(spec(part, normalizer=12).loss for part in (one, other))
    torch.testing.assert_close(total, (spec(one).loss + spec(other).loss) / 2)
    dapo = [LOSSES["dapo"](p, normalizer=20, clip_high=0.2).loss for p in (one, other)]
    assert spec.unit == "sequence"
    assert sum(dapo) != pytest.approx(total.item())


def test_rloo_penalty_is_part_of_the_reward() -> None:
    inputs = cases()
    assert inputs.rewards is not None
    penalties = [
        math.fsum(-r - d for r, d in zip(s.reference, s.ratios, strict=True))
        for s in responses(inputs)
    ]
    rewards = [r - 0.3 * k for r, k in zip(inputs.rewards.tolist(), penalties, strict=True)]
    expected = clipped_loop(inputs, left_out(rewards, inputs), **LEVELS["rloo"])
    check(gradient("rloo", inputs, kl_beta=0.3), expected)
    with pytest.raises(InputError, match="`kl_beta`"):
        LOSSES["rloo"](replace(inputs, advantages=torch.zeros(6)), kl_beta=0.3)


@pytest.mark.parametrize("clip", [0.2, None])
def test_ppo_value_loss(clip: float | None) -> None:
    inputs = ppo_inputs()
    assert inputs.values is not None and inputs.old_values is not None
    assert inputs.returns is not None
    values = inputs.values.requires_grad_()
    out = LOSSES["ppo"](inputs, value_coef=0.5, value_clip=clip)
    policy = LOSSES["ppo"](inputs, value_coef=0).loss
    parts, expected = [], []
    columns = (values.tolist(), inputs.old_values.tolist(), inputs.returns.tolist())
    for v, old, target in zip(*columns, strict=True):
        plain, error = (v - target) ** 2, v - target
        if clip is not None:
            held = old + min(max(v - old, -clip), clip)
            if (held - target) ** 2 > plain:
                plain, error = (held - target) ** 2, 0.0 if held != v else error
        parts.append(plain / 2)
        expected.append(0.5 * error / 20)
    assert out.loss.item() - policy.item() == pytest.approx(0.5 * math.fsum(parts) / 20, rel=1e-12)
    assert out.metrics["value_loss"].item() == pytest.approx(math.fsum(parts) / 20, rel=1e-12)
    (grad,) = torch.autograd.grad(out.loss, values)
    assert grad.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-16)


def test_ppo_policy_loss_per_token() -> None:
    inputs = ppo_inputs()
    assert inputs.advantages is not None
    parts, expected = [], [0.0] * 20
    for response in responses(inputs):
        for t, d in zip(response.where, response.ratios, strict=True):
            a, rho = inputs.advantages[t].item(), math.exp(d)
            parts.append(-min(rho * a, min(max(rho, 0.9), 1.1) * a) / 20)
            idle = (a > 0 and rho > 1.1) or (a < 0 and rho < 0.9)
            expected[t] = 0.0 if idle else -a * rho / 20
    found = gradient("ppo", inputs, value_coef=0, clip_low=0.1, clip_high=0.1)
    check(found, (math.fsum(parts), expected))


def test_ppo_needs() -> None:
    inputs = replace(ppo_inputs(), values=None, returns=None)
    assert LOSSES["ppo"](inputs, value_coef=0).loss.isfinite()
    with pytest.raises(InputError, match="`ppo` needs `values`"):
        LOSSES["ppo"](inputs)
    with pytest.raises(InputError, match="`ppo` needs `advantages`"):
        LOSSES["ppo"](replace(ppo_inputs(), advantages=None))


@pytest.mark.parametrize("name", LEVELS)
def test_on_policy_it_is_reinforce(name: str) -> None:
    """Ratios are 1: the gradient is that of -A times the log-probability."""
    inputs = replace(cases(), old_token_logps=None)
    found = gradient(name, inputs, on_policy=True)
    check(found, clipped_loop(inputs, advantages_of(name, inputs), **LEVELS[name]))
    same = replace(inputs, old_token_logps=inputs.token_logps)
    check(gradient(name, same), found)
    a, texts = advantages_of(name, inputs), responses(inputs)
    assert found[1][texts[0].where[0]] < 0 if a[0] > 0 else found[1][texts[0].where[0]] > 0
    assert any(found[1])


def test_sequence_levels_are_token_levels_on_single_tokens() -> None:
    inputs = make(GROUPED, lengths=(1,) * 6)
    hyper = {"clip_low": 0.1, "clip_high": 0.15}
    expected = gradient("grpo", inputs, **hyper)
    for name in ("gspo", "luspo", "dapo", "bnpo"):
        check(gradient(name, inputs, **hyper), expected)


def test_equal_lengths() -> None:
    inputs = make(GROUPED, lengths=(3,) * 6)
    check(gradient("dapo", inputs, clip_high=0.2), gradient("grpo", inputs))
    check(gradient("bnpo", inputs), gradient("grpo", inputs))
    hyper = {"clip_low": 0.1, "clip_high": 0.2}
    luspo, gspo = (gradient(n, inputs, **hyper) for n in ("luspo", "gspo"))
    check(luspo, (3 * gspo[0], [3 * g for g in gspo[1]]))


def test_an_overflowing_ratio_does_not_spoil_its_clipped_branch() -> None:
    """min(inf A, clip A) has the gradient 0 of the branch taken, not 0 * inf."""
    inputs = extreme([1e4, -1e4, 1e4, -1e4], [1.0, 1.0, 0.0, -1.0])
    for name in LEVELS:
        value = LOSSES[name](inputs, clip_low=0.2, clip_high=0.2).values
        assert value.tolist() == pytest.approx([-1.2, 0.0, 0.0, 0.8])
        found = gradient(name, inputs, clip_low=0.2, clip_high=0.2)[1]
        assert found == [0.0] * 4


def test_dual_clip_bounds_what_ppo_does_not() -> None:
    inputs = extreme([1e4], [-1.0])
    loss, (slope,) = gradient("grpo", inputs, dual_clip=3.0)
    assert (loss, slope) == (pytest.approx(3.0), 0.0)
    loss, (slope,) = gradient("grpo", inputs)
    assert slope == pytest.approx(math.exp(20))
    assert loss == pytest.approx(math.exp(20) * (1 + 1e4 - 20))


def test_penalty_far_from_the_reference() -> None:
    """Far above the reference it is -d - 1; far below it its gradient does not vanish."""
    (value,) = LOSSES["grpo"](extreme([1e4], [0.0]), kl_beta=1.0).values.tolist()
    assert value == pytest.approx(1e4 - 1)
    _, (slope,) = gradient("grpo", extreme([1e4], [0.0]), kl_beta=1.0)
    assert slope == pytest.approx(1.0)
    _, (slope,) = gradient("grpo", extreme([-1e4], [0.0]), kl_beta=1.0)
    assert slope == pytest.approx(1 - math.exp(20))


def test_penalty_of_a_small_difference_keeps_its_digits() -> None:
    """exp(d) - d - 1 in fp32 is rounding noise at d = 1e-4; its value is d^2 / 2."""
    inputs = extreme([0.0], [0.0])
    assert inputs.ref_token_logps is not None
    reference = torch.tensor([-1.0])
    inputs = replace(inputs, token_logps=reference + 1e-4, ref_token_logps=reference)
    inputs = replace(inputs, old_token_logps=None)
    difference = float(reference) - float(inputs.token_logps)
    (value,) = LOSSES["grpo"](inputs, kl_beta=1.0, on_policy=True).values.tolist()
    assert value == pytest.approx(difference**2 / 2, rel=1e-4)


def test_sequence_ratio_of_many_tokens_is_summed_exactly() -> None:
    """fp32 sums of 60,000 log-ratios have errors above clip ranges of 3e-4."""
    generator = seeds.generator()
    tokens = -torch.rand(60_000, generator=generator) * 8
    old = tokens - 1e-4
    inputs = LossInputs(
        token_logps=tokens,
        segments=torch.zeros(60_000, dtype=torch.int64),
        num_sequences=1,
        old_token_logps=old,
        advantages=torch.ones(1),
    )
    exact = math.fsum((tokens.double() - old.double()).tolist())
    found = LOSSES["rloo"](inputs, clip_low=1.0, clip_high=1e6).values.item()
    assert found == pytest.approx(-math.exp(exact), rel=1e-6)


def test_ppo_reads_values_per_token_where_a_sequence_is_empty() -> None:
    """With as many sequences as tokens the shape of advantages and values tells nothing."""
    tokens = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    inputs = LossInputs(
        token_logps=tokens,
        segments=torch.tensor([1, 1]),
        num_sequences=2,
        old_token_logps=tokens.detach(),
        advantages=torch.tensor([1.0, -3.0]),
        values=torch.tensor([0.0, 2.0]),
        returns=torch.tensor([1.0, 1.0]),
    )
    out = LOSSES["ppo"](inputs, value_coef=0.5, value_clip=None)
    assert out.values.tolist() == [-1 + 0.25, 3 + 0.25]
    out.loss.backward()
    assert tokens.grad is not None and tokens.grad.tolist() == [-0.5, 1.5]
    with pytest.raises(InputError, match="^`advantages`: .*one is empty"):
        LOSSES["ppo"](replace(inputs, returns=None), value_coef=0.0)
    apart = replace(inputs, segments=torch.tensor([0, 1]), returns=None)
    assert LOSSES["ppo"](apart, value_coef=0.0).values.tolist() == [-1, 3]


def test_metrics() -> None:
    inputs = cases()
    # Some tokens of every response of the largest group are beyond either bound.
    beyond = torch.tensor([0.3, -0.3], dtype=torch.float64).repeat(10)
    inputs = replace(inputs, old_token_logps=inputs.token_logps - beyond)
    out = LOSSES["grpo"](inputs, clip_low=0.02, clip_high=0.02, kl_beta=0.1)
    a = standardized(inputs)
    low = high = ratio = kl = 0.0
    for response, advantage in zip(responses(inputs), a, strict=True):
        for d, ref in zip(response.ratios, response.reference, strict=True):
            low += (math.exp(d) < 0.98 and advantage < 0) / 20
            high += (math.exp(d) > 1.02 and advantage > 0) / 20
            ratio += math.exp(d) / 20
            kl += (math.exp(ref) - ref - 1) / 20
    assert {name: value.item() for name, value in out.metrics.items()} == pytest.approx(
        {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "ratio/mean": ratio, "kl": kl}
    )
    assert low and high
