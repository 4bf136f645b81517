"""Identities between losses, invariances of pair losses, and precision."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rao_kernels.losses import LOSSES, LossInputs

from .. import seeds
from .cases import coefficients, make, make_for, pairs, ratios
from .scalars import entropy, logistic

B, E = 0.4, 0.2
# With constants in place of rewards: swapping a pair swaps its rewards too.
MARGINS = [
    name
    for name, spec in LOSSES.items()
    if "f_divergence" in spec.defaults and name not in ("dpo_nll", "rpo_pessimistic")
]
SWAPPED_WITH_REWARDS = ("rpo_distill", "rpo_bwd_kl", "rpo_fwd_kl")


def loss(name: str, inputs: LossInputs, **hyper: object) -> Tensor:
    return LOSSES[name](inputs, **hyper).loss


def mean_margin(inputs: LossInputs) -> float:
    d = ratios(inputs)
    return sum(d[w] - d[v] for w, v in pairs(inputs)) / 3


def with_gap(inputs: LossInputs, gap: float) -> LossInputs:
    preferred = inputs.require("preferred").double()
    return replace(inputs, rewards=gap * (preferred - 0.5))


def free(inputs: LossInputs) -> LossInputs:
    return replace(inputs, ref_logps=torch.zeros(6, dtype=torch.float64))


# Between losses.


def test_smoothing_is_linear_in_the_margin() -> None:
    inputs = make()
    u, dpo = B * mean_margin(inputs), loss("sigmoid", inputs, beta=B)
    cdpo = loss("cdpo", inputs, beta=B, label_smoothing=E)
    robust = loss("robust", inputs, beta=B, label_smoothing=E)
    torch.testing.assert_close(cdpo, dpo + E * u)
    torch.testing.assert_close(robust, dpo - E / (1 - 2 * E) * u)
    smoothed = loss("sigmoid", inputs, beta=B, label_smoothing=E)
    torch.testing.assert_close(cdpo, smoothed)


def test_reward_aware_losses_at_a_smoothed_target() -> None:
    target = math.log((1 - E) / E)
    inputs = with_gap(make(), target)
    cdpo = loss("cdpo", inputs, beta=B, label_smoothing=E)
    torch.testing.assert_close(loss("rpo_bwd_kl", inputs, beta=B), cdpo - entropy(E))
    exo = loss("exo_pair", inputs, beta=B, label_smoothing=E)
    torch.testing.assert_close(loss("rpo_fwd_kl", inputs, beta=B), exo)
    certain = with_gap(make(), 1e3)
    dpo = loss("sigmoid", certain, beta=B)
    torch.testing.assert_close(loss("rpo_bwd_kl", certain, beta=B), dpo)


def test_distillation_of_a_half_is_ipo() -> None:
    inputs = with_gap(make(), 0.5)
    distill = loss("rpo_distill", inputs, beta=B)
    torch.testing.assert_close(distill, B * B * loss("ipo", inputs, tau=B))


def test_pessimism_with_one_model_is_distillation() -> None:
    inputs = make()
    one = replace(inputs, reward_ensemble=inputs.require("rewards")[None])
    distill = LOSSES["rpo_distill"](inputs).values
    for minimum in ("pair", "batch"):
        values = LOSSES["rpo_pessimistic"](one, minimum=minimum).values
        torch.testing.assert_close(values, distill)


def test_squares_to_half() -> None:
    inputs = make()
    d = torch.tensor(ratios(inputs), dtype=torch.float64)
    w, v = (torch.tensor(side) for side in zip(*pairs(inputs), strict=True))
    squares = loss("sppo_hard", inputs, beta=B)
    level = (d[w] + d[v]).square() / 2
    gap = (d[w] - d[v] - 1 / B).square() / 2
    torch.testing.assert_close(squares, (gap + level).mean())
    half = with_gap(inputs, 1.0)
    rao = loss("rao", half, beta=B, log_z0=0.0, prompt_term="none")
    torch.testing.assert_close(rao, B * B / 2 * squares)
    calibrated = loss("cal_dpo", inputs, beta=B, calibration_weight=0.7)
    torch.testing.assert_close(calibrated, loss("sigmoid", inputs, beta=1.0) + 0.7 * squares)


def test_what_is_dpo_in_a_limit() -> None:
    inputs = make()
    dpo = loss("sigmoid", inputs, beta=B)
    for name, hyper in (
        ("dpo_shift", {"shift": 1.0}),
        ("dpop", {"dpop_lambda": 0.0}),
        ("cdpo", {"label_smoothing": 0.0}),
        ("robust", {"label_smoothing": 0.0}),
        ("r_dpo", {"alpha": 0.0}),
        ("dpo_nll", {"sft_weight": 0.0}),
    ):
        torch.testing.assert_close(loss(name, inputs, beta=B, **hyper), dpo)


def test_without_a_reference() -> None:
    inputs = free(make())
    simpo = loss("simpo", inputs, beta=B, gamma=0.0)
    torch.testing.assert_close(loss("sigmoid_norm", inputs, beta=B), simpo)


def test_the_penalty_of_dpop_punishes() -> None:
    """With the penalty outside the sigmoid, as in some public code, it would be a reward."""
    inputs = make((0, 0), lengths=(1, 1), preferred=(True, False))
    tokens = torch.tensor([-5.0, -9.0], dtype=torch.float64)
    for d in (-2.0, -3.0):
        below = replace(inputs, token_logps=tokens, ref_logps=tokens - d)
        assert loss("dpop", below) > loss("sigmoid", below, beta=0.3)
    lower = replace(inputs, token_logps=tokens, ref_logps=tokens + 2.0)
    lowest = replace(inputs, token_logps=tokens, ref_logps=tokens + 3.0)
    assert loss("dpop", lowest) > loss("dpop", lower)


def test_the_two_bco_losses_differ_from_dpo() -> None:
    """TRL's index of papers prints bco_pair as DPO."""
    inputs = make((0, 0), lengths=(1, 1), preferred=(True, False))
    moved = replace(inputs, token_logps=inputs.token_logps + 3)
    torch.testing.assert_close(loss("sigmoid", inputs), loss("sigmoid", moved))
    assert not torch.isclose(loss("bco_pair", inputs), loss("bco_pair", moved))


def test_a_longer_chosen_response_teaches_less_under_r_dpo() -> None:
    inputs = make((0, 0), lengths=(6, 2), preferred=(True, False))
    tokens = inputs.token_logps.requires_grad_()
    pulls = [
        abs(coefficients(loss("r_dpo", inputs, beta=B, alpha=a), tokens, inputs)[0])
        for a in (0.0, 0.1, 0.2)
    ]
    assert pulls == sorted(pulls, reverse=True)


# Of every function of the margin.


@pytest.mark.parametrize("name", MARGINS)
def test_a_constant_on_both_of_a_pair_changes_nothing(name: str) -> None:
    inputs = make(lengths=(1,) * 6)
    shift = torch.tensor([5.0, 5.0, -2.0, -2.0, 7.0, 7.0], dtype=torch.float64)
    shifted = replace(inputs, token_logps=inputs.token_logps + shift)
    torch.testing.assert_close(loss(name, shifted), loss(name, inputs))
    reference = replace(inputs, ref_logps=inputs.require("ref_logps") + shift)
    torch.testing.assert_close(loss(name, reference), loss(name, inputs))


@pytest.mark.parametrize("name", MARGINS)
def test_coefficients_of_a_pair_cancel_and_swapping_negates_the_margin(name: str) -> None:
    inputs = make(lengths=(2,) * 6)
    tokens = inputs.token_logps.requires_grad_()
    out = LOSSES[name](inputs)
    c = coefficients(out.loss, tokens, inputs)
    assert [c[w] + c[v] for w, v in pairs(inputs)] == pytest.approx([0] * 3, abs=1e-15)
    swapped = LOSSES[name](replace(inputs, preferred=~inputs.require("preferred")))
    margins = "rewards/margins"
    torch.testing.assert_close(swapped.metrics[margins], -out.metrics[margins])
    if name in SWAPPED_WITH_REWARDS:
        torch.testing.assert_close(swapped.values, out.values)


@pytest.mark.parametrize("name", ["cal_dpo", "apo_down", "apo_zero", "nca_pair", "sppo_hard"])
def test_the_others_fix_a_level(name: str) -> None:
    inputs = make(lengths=(1,) * 6)
    levels = [replace(inputs, token_logps=inputs.token_logps + shift) for shift in (0, 1, 2)]
    values = torch.stack([loss(name, level) for level in levels])
    assert values.max() - values.min() > 1e-6 * values.abs().max()  # two of them may agree


# Precision.


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "sppo_hard", "rebel", "kimi", "dro_value"])
def test_long_responses_keep_their_log_ratio(name: str) -> None:
    """fp32 sums of 16k tokens near -100,000 are off by more than this log-ratio."""
    size = 16384
    inputs = make((0, 0), lengths=(size, size), preferred=(True, False))
    generator = seeds.generator()
    reference = -12 * torch.rand(2 * size, generator=generator)
    change = 1e-6 * torch.rand(2 * size, generator=generator)
    change[size:] *= -1
    logps = reference + change
    exact = (logps.double() - reference.double()).view(2, -1).sum(1)
    inputs = replace(inputs, token_logps=logps, ref_token_logps=reference, ref_logps=None)
    short = make((0, 0), lengths=(1, 1), preferred=(True, False))
    short = replace(
        short,
        token_logps=exact,
        ref_logps=torch.zeros(2, dtype=torch.float64),
        rewards=inputs.rewards,
        values=inputs.values,
    )
    hyper = {"tau": 0.1} if name in ("ipo", "kimi") else {}
    ours = loss(name, inputs, **hyper).double()
    torch.testing.assert_close(ours, loss(name, short, **hyper), rtol=1e-6, atol=0)
    assert (exact[0] - exact[1]).item() > 0
    naive = (logps.view(2, -1).sum(1) - reference.view(2, -1).sum(1)).double()
    assert (naive - exact).abs().max() > 0.1 * exact.abs().max()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_certain_tokens(name: str) -> None:
    """Probability one: log-probs of exactly 0 under policy, reference and sampling policy."""
    if "gold" in LOSSES[name].needs and "preferred" in LOSSES[name].needs:
        pytest.skip("needs triples; tested with its family")
    inputs = make_for(name, dtype=torch.float32, per_token=True)
    zeros = torch.zeros_like(inputs.token_logps)
    tokens = zeros.clone().requires_grad_()
    inputs = replace(
        inputs,
        token_logps=tokens,
        ref_token_logps=zeros,
        old_token_logps=zeros,
        token_log_sum_sq=zeros,
        advantages=zeros + 1 if name == "ppo" else None,
    )
    out = LOSSES[name](inputs)
    assert out.loss.isfinite()
    (grad,) = torch.autograd.grad(out.loss, tokens)
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", MARGINS)
def test_two_empty_responses(name: str) -> None:
    inputs = make((0, 0), lengths=(0, 0), preferred=(True, False))
    zero = torch.zeros(2, dtype=torch.float64)
    inputs = replace(inputs, ref_logps=zero, token_logps=inputs.token_logps.requires_grad_())
    out = LOSSES[name](inputs)
    assert out.loss.isfinite()
    out.loss.backward()


def test_half_precision_inputs_are_summed_wide() -> None:
    """Near 800 nats bf16 has steps of 4: sums and log-ratios are taken in fp64."""
    inputs = make((0, 0), lengths=(800, 800), preferred=(True, False))
    ones = torch.full((1600,), -1.0, dtype=torch.bfloat16)
    changed = ones.clone()
    changed[0] = -0.5
    inputs = replace(inputs, token_logps=changed, ref_token_logps=ones, ref_logps=None)
    margin = LOSSES["sigmoid"](inputs, beta=1.0).metrics["rewards/margins"]
    assert margin.item() == 0.5
    assert logistic(0.5) == pytest.approx(
        math.exp(-LOSSES["sigmoid"](inputs, beta=1.0).loss.item()), rel=1e-6
    )
