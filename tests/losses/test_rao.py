"""RAO against per-token loops, its closed form and the identities of its residual."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch

from rao_kernels.errors import InputError, OneSidedTargetsWarning
from rao_kernels.losses import LOSSES, LossInputs, fit_log_z0

from .cases import GROUPED, coefficients, make, prompt_ratios, ratios

RAO = LOSSES["rao"]
BETA, LOG_Z0 = 0.3, 1.7


def residuals(
    inputs: LossInputs, beta: float = BETA, log_z0: float = LOG_Z0, term: str = "detached"
) -> list[float]:
    assert inputs.rewards is not None
    found = []
    for r, d, dx in zip(
        inputs.rewards.tolist(), ratios(inputs), prompt_ratios(inputs), strict=True
    ):
        log_z = {
            "detached": log_z0 + dx,
            "grad": log_z0 + dx,
            "none": log_z0,
            "eq7_literal": log_z0 * math.exp(dx),
        }[term]
        found.append(r - beta * (d + log_z))
    return found


def mean_of_means(values: list[float], groups: tuple[int, ...]) -> float:
    prompts = sorted(set(groups))
    members = [[v for v, g in zip(values, groups, strict=True) if g == p] for p in prompts]
    return math.fsum(math.fsum(m) / len(m) for m in members) / len(prompts)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("term", ["detached", "grad", "none", "eq7_literal"])
def test_value_and_gradient(term: str, per_token: bool) -> None:
    inputs = make(GROUPED, per_token=per_token)
    assert inputs.prompt_logps is not None
    tokens = inputs.token_logps.requires_grad_()
    prompt = inputs.prompt_logps.requires_grad_()
    out = RAO(inputs, beta=BETA, log_z0=LOG_Z0, prompt_term=term)
    e = residuals(inputs, term=term)
    torch.testing.assert_close(out.values.tolist(), [x * x for x in e], rtol=1e-13, atol=1e-13)
    expected = mean_of_means([x * x for x in e], GROUPED)
    assert out.loss.item() == pytest.approx(expected, rel=1e-13)

    share = [1 / (3 * GROUPED.count(g)) for g in GROUPED]
    closed = [-2 * BETA * w * x for w, x in zip(share, e, strict=True)]
    found = coefficients(out.loss, tokens, inputs) if term != "grad" else None
    if found is not None:
        assert not prompt.grad
        lengths = inputs.lengths.tolist()
        for value, expected, length in zip(found, closed, lengths, strict=True):
            assert math.isnan(value) if length == 0 else value == pytest.approx(expected, rel=1e-12)
        return
    (grad,) = torch.autograd.grad(out.loss, prompt)
    torch.testing.assert_close(grad.tolist(), closed, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("term", ["detached", "none", "eq7_literal"])
def test_the_prompt_carries_no_gradient(term: str) -> None:
    inputs = make(GROUPED)
    assert inputs.prompt_logps is not None
    prompt = inputs.prompt_logps.requires_grad_()
    inputs.token_logps.requires_grad_()
    loss = RAO(inputs, prompt_term=term).loss
    assert torch.autograd.grad(loss, prompt, allow_unused=True) == (None,)


def test_no_groups_means_one_prompt_each() -> None:
    inputs = make(None, preferred=None)
    out = RAO(inputs, beta=BETA, log_z0=LOG_Z0)
    assert out.loss.item() == pytest.approx(
        sum(x * x for x in residuals(inputs)) / inputs.num_sequences, rel=1e-13
    )
    assert torch.equal(out.metrics["rewards/margins"], torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize(("log_z0", "warns"), [(50.0, True), (-50.0, True), ("auto", False)])
def test_targets_of_one_sign_are_told(log_z0: float | str, warns: bool) -> None:
    """log Z0 = 50 with rewards of 0 to 1 lowers the probability of every response."""
    inputs = replace(make(GROUPED), rewards=torch.linspace(0, 1, 6, dtype=torch.float64))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        RAO(inputs, log_z0=log_z0)
    assert [w.category for w in caught] == [OneSidedTargetsWarning] * warns


def test_logmeanexp_takes_reference_samples_where_there_are_any() -> None:
    inputs = replace(make(GROUPED), ref_rewards=None, ref_reward_groups=None)
    samples, groups = torch.tensor([1.0, 2.0, -1.0, 0.5]), torch.tensor([0, 0, 1, 2])
    assert inputs.rewards is not None
    found = RAO(inputs, log_z0="logmeanexp", beta=BETA).metrics["rao/log_z0"]
    expected = fit_log_z0(inputs.rewards, BETA, inputs.groups, "logmeanexp")
    torch.testing.assert_close(found, expected)
    inputs = replace(inputs, ref_rewards=samples, ref_reward_groups=groups)
    found = RAO(inputs, log_z0="logmeanexp", beta=BETA).metrics["rao/log_z0"]
    torch.testing.assert_close(found, fit_log_z0(samples, BETA, groups, "logmeanexp"))
    with pytest.raises(InputError, match="`ref_reward_groups`"):
        RAO(replace(inputs, ref_reward_groups=None), log_z0="logmeanexp")
    with pytest.raises(InputError, match="`log_z0`.*'logmeanexp'"):
        RAO(inputs, log_z0="mean")
    with pytest.raises(InputError, match="`method`"):
        fit_log_z0(samples, BETA, groups, "mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`rewards`.*S >= 1"):
        fit_log_z0(samples[:0], BETA)
    with pytest.raises(InputError, match=r"`groups`.*\[4\], like `rewards`"):
        fit_log_z0(samples, BETA, groups[:1])
    with pytest.raises(InputError, match="`ref_reward_groups`.*K = 4"):
        replace(inputs, ref_reward_groups=groups[:1])


def test_per_token_reference_equals_its_sum() -> None:
    inputs = make(GROUPED, per_token=True)
    reference = replace(inputs, token_logps=inputs.ref_token_logps).logps
    summed = replace(inputs, ref_token_logps=None, ref_logps=reference)
    torch.testing.assert_close(RAO(summed).loss, RAO(inputs).loss, rtol=1e-13, atol=0)


def test_differences_per_token_survive_long_responses() -> None:
    """Sums near -1e5 nats in fp32 lose the log-ratio; differences keep it."""
    count = 20_000
    ref = -5 - torch.rand(count)
    tokens = ref + 1e-4
    inputs = LossInputs(
        token_logps=tokens,
        segments=torch.zeros(count, dtype=torch.int64),
        num_sequences=1,
        ref_token_logps=ref,
        rewards=torch.zeros(1),
    )
    out = RAO(inputs, beta=1.0, log_z0=0.0, prompt_term="none")
    exact = math.fsum((tokens.double() - ref.double()).tolist())
    assert out.loss.item() == pytest.approx(exact**2, rel=1e-6)


def test_auto_is_the_mean_over_prompts_of_the_mean_reward_over_beta() -> None:
    inputs = make(GROUPED)
    assert inputs.rewards is not None
    expected = mean_of_means(inputs.rewards.tolist(), GROUPED) / BETA
    out = RAO(inputs, beta=BETA, log_z0="auto")
    assert out.metrics["rao/log_z0"].item() == pytest.approx(expected, rel=1e-13)
    given = RAO(inputs, beta=BETA, log_z0=expected)
    torch.testing.assert_close(out.loss, given.loss, rtol=1e-12, atol=0)


# Identities.


def test_equals_whole_sequence_regression() -> None:
    """e = r - beta (D_total + log Z0), and its gradient with the prompt's tokens masked."""
    inputs = make(GROUPED)
    assert inputs.prompt_logps is not None
    tokens = inputs.token_logps.requires_grad_()
    prompt = inputs.prompt_logps.requires_grad_()
    whole = RAO(inputs, prompt_term="grad").loss
    masked = RAO(inputs, prompt_term="detached").loss
    assert torch.equal(whole, masked)
    full = torch.autograd.grad(whole, [tokens, prompt])
    assert torch.equal(full[0], torch.autograd.grad(masked, tokens)[0])
    assert full[1].abs().min() > 0


def test_shift() -> None:
    inputs = make(GROUPED)
    assert inputs.rewards is not None
    shifted = replace(inputs, rewards=inputs.rewards + 3)
    one = RAO(shifted, beta=BETA, log_z0=LOG_Z0 + 3 / BETA)
    torch.testing.assert_close(one.loss, RAO(inputs, beta=BETA, log_z0=LOG_Z0).loss)


def test_scale() -> None:
    inputs = make(GROUPED)
    assert inputs.rewards is not None
    scaled = replace(inputs, rewards=4 * inputs.rewards)
    one = RAO(scaled, beta=4 * BETA, log_z0=LOG_Z0).loss
    torch.testing.assert_close(one, 16 * RAO(inputs, beta=BETA, log_z0=LOG_Z0).loss)


def test_pair_is_distillation_plus_level() -> None:
    """With a gap of 1/2 the first part is tau^2 IPO / 4 at tau = beta."""
    inputs = replace(make((0, 0), lengths=(3, 4), preferred=(True, False)))
    inputs = replace(inputs, rewards=torch.tensor([0.2, -0.3], dtype=torch.float64))
    rao = RAO(inputs, beta=BETA, log_z0=LOG_Z0)
    ipo = LOSSES["ipo"](inputs, tau=BETA).loss
    expected = BETA**2 * ipo / 4 + rao.metrics["rao/residual_mean"].square()
    torch.testing.assert_close(rao.loss, expected, rtol=1e-12, atol=0)


def test_group_is_variance_plus_squared_mean() -> None:
    inputs = make((0,) * 6)
    e = torch.tensor(residuals(inputs), dtype=torch.float64)
    out = RAO(inputs, beta=BETA, log_z0=LOG_Z0)
    expected = e.var(correction=0) + e.mean().square()
    torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=0)


def test_half_rewards_are_squared_targets() -> None:
    """r = +-1/2 without a normaliser: beta^2/2 [(D_w - 1/2beta)^2 + (D_l + 1/2beta)^2]."""
    inputs = make((0, 0), lengths=(3, 4), preferred=(True, False))
    inputs = replace(inputs, rewards=torch.tensor([0.5, -0.5], dtype=torch.float64))
    w, l = ratios(inputs)  # noqa: E741
    target = 1 / (2 * BETA)
    expected = BETA**2 / 2 * ((w - target) ** 2 + (l + target) ** 2)
    out = RAO(inputs, beta=BETA, log_z0=0.0, prompt_term="none")
    assert out.loss.item() == pytest.approx(expected, rel=1e-13)


def test_gap_at_zero_loss_does_not_depend_on_log_z0() -> None:
    inputs = make((0, 0), lengths=(1, 1), preferred=(True, False))
    assert inputs.rewards is not None
    assert inputs.ref_logps is not None
    assert inputs.prompt_logps is not None
    assert inputs.ref_prompt_logps is not None
    prompt = inputs.prompt_logps - inputs.ref_prompt_logps
    for log_z0 in (-5.0, 0.0, 50.0):
        ratio = inputs.rewards / BETA - log_z0 - prompt
        solved = replace(inputs, token_logps=inputs.ref_logps + ratio)
        out = RAO(solved, beta=BETA, log_z0=log_z0)
        assert out.loss.item() == pytest.approx(0, abs=1e-24)
        gap = (inputs.rewards.max() - inputs.rewards.min()).item()
        assert out.metrics["rewards/margins"].item() == pytest.approx(gap, rel=1e-12)


def test_eq7_agrees_where_the_prompt_did_not_move() -> None:
    inputs = make(GROUPED)
    still = replace(inputs, prompt_logps=inputs.ref_prompt_logps)
    torch.testing.assert_close(RAO(still).loss, RAO(still, prompt_term="eq7_literal").loss)
    assert not torch.isclose(RAO(inputs).loss, RAO(inputs, prompt_term="eq7_literal").loss)


# Metrics.


def test_metrics() -> None:
    inputs = make(GROUPED)
    assert inputs.rewards is not None
    assert inputs.prompt_logps is not None
    metrics = {k: v.item() for k, v in RAO(inputs, beta=BETA, log_z0=LOG_Z0).metrics.items()}
    e, d = residuals(inputs), ratios(inputs)
    log_z = [LOG_Z0 + dx for dx in prompt_ratios(inputs)]
    rewards = inputs.rewards.tolist()
    level = mean_of_means(log_z, GROUPED)
    logps = inputs.logps.tolist()
    best = [
        max((i for i in range(6) if GROUPED[i] == g), key=rewards.__getitem__) for g in range(3)
    ]
    worst = [
        min((i for i in range(6) if GROUPED[i] == g), key=rewards.__getitem__) for g in range(3)
    ]
    # The group with one response has equal rewards, and counts one half.
    right = [0.5 if b == w else float(d[b] > d[w]) for b, w in zip(best, worst, strict=True)]
    expected = {
        "rao/mse": mean_of_means([x * x for x in e], GROUPED),
        "rao/residual_mean": mean_of_means(e, GROUPED),
        "rao/residual_abs_max": max(abs(x) for x in e),
        "rao/target_mean": mean_of_means(
            [r - BETA * z for r, z in zip(rewards, log_z, strict=True)], GROUPED
        ),
        "rao/implicit_mean": mean_of_means([BETA * x for x in d], GROUPED),
        "rao/log_z0": LOG_Z0,
        "rao/log_z_mean": level,
        "rao/log_z_std": math.sqrt(mean_of_means([(z - level) ** 2 for z in log_z], GROUPED)),
        "logps/prompt": mean_of_means(inputs.prompt_logps.tolist(), GROUPED),
        "rewards/chosen": sum(BETA * d[i] for i in best) / 3,
        "rewards/rejected": sum(BETA * d[i] for i in worst) / 3,
        "rewards/margins": sum(BETA * (d[b] - d[w]) for b, w in zip(best, worst, strict=True)) / 3,
        "rewards/accuracies": sum(right) / 3,
        "logps/chosen": sum(logps[i] for i in best) / 3,
        "logps/rejected": sum(logps[i] for i in worst) / 3,
    }
    assert metrics == pytest.approx(expected, rel=1e-12)


def test_among_equal_rewards_the_first_is_taken() -> None:
    inputs = make((0, 0, 0, 0), lengths=(1, 1, 1, 1), preferred=None)
    inputs = replace(inputs, rewards=torch.tensor([0.0, 1.0, 0.0, 1.0]))
    metrics = RAO(inputs).metrics
    torch.testing.assert_close(metrics["logps/chosen"], inputs.logps[1])
    torch.testing.assert_close(metrics["logps/rejected"], inputs.logps[0])
