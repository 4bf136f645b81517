"""Point-wise reward regressions against formulas on Python floats, and their identities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch

from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES, LossInputs

from .cases import GROUPED, PAIRED, coefficients, make, pairs, ratios

B, TAU = 0.3, 0.7
Residuals = Callable[[LossInputs, list[float], list[float]], tuple[list[float], float, float]]


def members(groups: tuple[int, ...], i: int) -> list[int]:
    return [j for j, g in enumerate(groups) if g == groups[i]]


def group_means(values: list[float]) -> list[float]:
    return [
        sum(values[j] for j in members(GROUPED, i)) / len(members(GROUPED, i)) for i in range(6)
    ]


def samples_of(inputs: LossInputs, i: int) -> list[float]:
    rewards = inputs.require("ref_rewards").tolist()
    owners = inputs.require("ref_reward_groups").tolist()
    return [r for r, g in zip(rewards, owners, strict=True) if g == GROUPED[i]]


def reference(inputs: LossInputs) -> list[float]:
    found = [0.0] * 6
    if inputs.ref_logps is not None:
        return inputs.ref_logps.tolist()
    values = inputs.require("ref_token_logps").tolist()
    for value, segment in zip(values, inputs.segments.tolist(), strict=True):
        found[segment] += value
    return found


# Each returns residuals, the factor of their squares and the factor of D in them.


def dro_value(
    inputs: LossInputs, r: list[float], d: list[float]
) -> tuple[list[float], float, float]:
    v = inputs.require("values").tolist()
    return [a - b - TAU * c for a, b, c in zip(r, v, d, strict=True)], 0.5, TAU


def partition(normalized: bool) -> Residuals:
    def residuals(
        inputs: LossInputs, r: list[float], d: list[float]
    ) -> tuple[list[float], float, float]:
        n = [max(x, 1) if normalized else 1 for x in inputs.lengths.tolist()]
        ref = [a / b for a, b in zip(reference(inputs), n, strict=True)]
        found = []
        for i in range(6):
            terms = [math.exp(ref[j]) * math.exp(r[j] / TAU) for j in members(GROUPED, i)]
            found.append((r[i] - TAU * math.log(sum(terms))) / TAU - d[i] / n[i])
        return found, 0.5, 1.0

    return residuals


def a2po(inputs: LossInputs, r: list[float], d: list[float]) -> tuple[list[float], float, float]:
    found = []
    for i in range(6):
        samples = samples_of(inputs, i)
        value = TAU * math.log(sum(math.exp(s / TAU) for s in samples) / len(samples))
        found.append(r[i] - value - B * d[i])
    return found, 1.0, B


def qrpo(kind: str, clamp: str = "half_sample") -> Residuals:
    """QRPO with q clamped by half a sample or, as in the authors' code, by one.

    The authors' code does not clamp q away from 1 for the logarithm.
    """

    def residuals(
        inputs: LossInputs, r: list[float], d: list[float]
    ) -> tuple[list[float], float, float]:
        found = []
        margin = 0.5 if clamp == "half_sample" else 1
        below_one = 0 if (kind, clamp) == ("log", "authors") else margin
        for i in range(6):
            samples = samples_of(inputs, i)
            count, n = sum(s <= r[i] for s in samples), len(samples)
            if kind == "identity":
                target, log_z = count / n, math.log(B * (math.exp(1 / B) - 1))
            else:
                q = min(max(count, margin), n - below_one) / n
                target = math.log(q) if kind == "log" else NormalDist().inv_cdf(q)
                log_z = math.log(B / (1 + B)) if kind == "log" else 1 / (2 * B * B)
            found.append(target - B * log_z - B * d[i])
        return found, 1.0, B

    return residuals


def kimi(baseline: str) -> Residuals:
    def residuals(
        inputs: LossInputs, r: list[float], d: list[float]
    ) -> tuple[list[float], float, float]:
        level = group_means(r)
        if baseline == "log_mean_exp":
            level = [TAU * math.log(x) for x in group_means([math.exp(x / TAU) for x in r])]
        return [a - b - TAU * c for a, b, c in zip(r, level, d, strict=True)], 0.5 / TAU, TAU

    return residuals


def dgro(inputs: LossInputs, r: list[float], d: list[float]) -> tuple[list[float], float, float]:
    level = group_means(r)
    return [1.5 * (a - b) - TAU * c for a, b, c in zip(r, level, d, strict=True)], 0.5 / TAU, TAU


def dgro_without_half(
    inputs: LossInputs, r: list[float], d: list[float]
) -> tuple[list[float], float, float]:
    """``-beta1 (r - V) D + beta2 D^2``: dL/dD = -(beta1 (r - V) - 2 beta2 D)."""
    tau = 2 * TAU
    level = group_means(r)
    return [1.5 * (a - b) - tau * c for a, b, c in zip(r, level, d, strict=True)], 0.5 / tau, tau


def dgro_of_the_soft_value(
    inputs: LossInputs, r: list[float], d: list[float]
) -> tuple[list[float], float, float]:
    """With V the soft value, the policy at D = (beta1 / beta2) (r - V) is normalised."""
    t = TAU / 1.5
    level = [t * math.log(x) for x in group_means([math.exp(x / t) for x in r])]
    return [1.5 * (a - b) - TAU * c for a, b, c in zip(r, level, d, strict=True)], 0.5 / TAU, TAU


def agro(inputs: LossInputs, r: list[float], d: list[float]) -> tuple[list[float], float, float]:
    rho = [a - B * c for a, c in zip(r, d, strict=True)]
    return [a - b for a, b in zip(rho, group_means(rho), strict=True)], 0.5, B


CASES: list[tuple[str, dict[str, object], Residuals]] = [
    ("dro_value", {"tau": TAU}, dro_value),
    ("reward_partition", {"tau": TAU}, partition(False)),
    ("reward_partition", {"tau": TAU, "length_normalized": True}, partition(True)),
    ("a2po", {"beta1": TAU, "beta2": B}, a2po),
    ("qrpo", {"beta": B}, qrpo("identity")),
    ("qrpo", {"beta": B, "quantile_reward": "log"}, qrpo("log")),
    ("qrpo", {"beta": B, "quantile_reward": "normal"}, qrpo("normal")),
    ("kimi", {"tau": TAU}, kimi("mean")),
    ("kimi", {"tau": TAU, "baseline": "log_mean_exp"}, kimi("log_mean_exp")),
    ("dgro", {"beta1": 1.5, "beta2": TAU}, dgro),
    ("dgro", {"beta1": 1.5, "beta2": TAU, "half": False}, dgro_without_half),
    ("dgro", {"beta1": 1.5, "beta2": TAU, "baseline": "log_mean_exp"}, dgro_of_the_soft_value),
    (
        "qrpo",
        {"beta": B, "quantile_reward": "log", "quantile_clamp": "authors"},
        qrpo("log", "authors"),
    ),
    (
        "qrpo",
        {"beta": B, "quantile_reward": "normal", "quantile_clamp": "authors"},
        qrpo("normal", "authors"),
    ),
    ("agro", {"beta": B}, agro),
]
cases = pytest.mark.parametrize(
    ("name", "hyper", "residuals"), CASES, ids=[f"{n}-{'-'.join(map(str, h))}" for n, h, _ in CASES]
)


@cases
@pytest.mark.parametrize("per_token", [False, True])
def test_value_and_gradient(
    name: str, hyper: dict[str, object], residuals: Residuals, per_token: bool
) -> None:
    """dL/dD = -2 factor slope residual, over the responses or over prompts times responses."""
    inputs = make(GROUPED, per_token=per_token)
    tokens = inputs.token_logps.requires_grad_()
    out = LOSSES[name](inputs, **hyper)
    e, factor, slope = residuals(inputs, inputs.require("rewards").tolist(), ratios(inputs))
    values = [factor * x * x for x in e]
    assert out.values.tolist() == pytest.approx(values, rel=1e-11, abs=1e-14)
    per_prompt = LOSSES[name].unit == "prompt"
    share = [1 / (3 * len(members(GROUPED, i))) if per_prompt else 1 / 6 for i in range(6)]
    expected = sum(w * v for w, v in zip(share, values, strict=True))
    assert out.loss.item() == pytest.approx(expected, rel=1e-11)
    n = inputs.lengths.tolist()
    spread = [max(x, 1) if "length_normalized" in hyper else 1 for x in n]
    closed = [
        -2 * factor * slope * w * x / k if size else math.nan
        for w, x, k, size in zip(share, e, spread, n, strict=True)
    ]
    got = coefficients(out.loss, tokens, inputs)
    assert got == pytest.approx(closed, rel=1e-10, abs=1e-14, nan_ok=True)


@cases
def test_right_at_extreme_log_ratios(
    name: str, hyper: dict[str, object], residuals: Residuals
) -> None:
    inputs = make(GROUPED, lengths=(1,) * 6, dtype=torch.float32)
    tokens = torch.full((6,), -2e4).requires_grad_()
    ratio = torch.tensor([1e4, -1e4, 0.0, 1e4, -1e4, 0.0])
    ref = tokens.detach() - ratio
    if name == "reward_partition":
        ref = torch.tensor([0.0, -3.0, 0.0, -1.0, -2.0, -1e4])
    inputs = replace(inputs, token_logps=tokens, ref_logps=ref)
    out = LOSSES[name](inputs, **hyper)
    e, factor, _ = residuals(inputs, inputs.require("rewards").tolist(), ratios(inputs))
    assert out.values.tolist() == pytest.approx([factor * x * x for x in e], rel=1e-5, abs=1e-3)
    (grad,) = torch.autograd.grad(out.loss, tokens)
    assert grad.isfinite().all()


def test_the_value_model_learns_from_the_same_residual() -> None:
    inputs = make(GROUPED)
    values = inputs.require("values").requires_grad_()
    out = LOSSES["dro_value"](inputs, tau=TAU)
    (grad,) = torch.autograd.grad(out.loss, values)
    e, _, _ = dro_value(inputs, inputs.require("rewards").tolist(), ratios(inputs))
    assert grad.tolist() == pytest.approx([-x / 6 for x in e], rel=1e-12)


def test_rebel() -> None:
    inputs = make(PAIRED)
    tokens = inputs.token_logps.requires_grad_()
    out = LOSSES["rebel"](inputs, eta=0.4)
    d, r, found = ratios(inputs), inputs.require("rewards").tolist(), pairs(inputs)
    e = [d[w] - d[v] - 0.4 * (r[w] - r[v]) for w, v in found]
    assert out.values.tolist() == pytest.approx([x * x for x in e], rel=1e-12)
    expected = [math.nan] * 6
    for (w, v), x in zip(found, e, strict=True):
        expected[w], expected[v] = 2 * x / 3, -2 * x / 3
    expected[4] = math.nan
    got = coefficients(out.loss, tokens, inputs)
    assert got == pytest.approx(expected, rel=1e-11, nan_ok=True)


# Identities.


def test_the_variance_of_samples() -> None:
    """Divided by k - 1; a prompt with one response has none."""
    inputs = make(GROUPED)
    plain = LOSSES["agro"](inputs, beta=B).values
    sizes = torch.tensor([len(members(GROUPED, i)) for i in range(6)])
    expected = plain * sizes / (sizes - 1).clamp(min=1)
    torch.testing.assert_close(LOSSES["agro"](inputs, beta=B, unbiased=True).values, expected)
    assert plain[1].item() == pytest.approx(0, abs=1e-30)


def test_rao_is_twice_dro_with_its_level_as_the_value() -> None:
    inputs = make(None, preferred=None)
    level = inputs.require("prompt_logps") - inputs.require("ref_prompt_logps") + 2.0
    with_value = replace(inputs, values=B * level)
    rao = LOSSES["rao"](inputs, beta=B, log_z0=2.0).loss
    torch.testing.assert_close(rao, 2 * LOSSES["dro_value"](with_value, tau=B).loss)


def test_rao_is_kimi_and_agro_with_the_groups_level() -> None:
    """Mean squared residual of a group = 2 AGRO + (mean residual)^2; Kimi is over 2 tau."""
    inputs = make((0,) * 6)
    rewards, hyper = inputs.require("rewards"), {"log_z0": 0.0, "prompt_term": "none"}
    residual = rewards - B * torch.tensor(ratios(inputs), dtype=torch.float64)
    rao = LOSSES["rao"](inputs, beta=B, **hyper).loss
    agro = LOSSES["agro"](inputs, beta=B).loss
    torch.testing.assert_close(rao, 2 * agro + residual.mean().square())
    centred = replace(inputs, rewards=rewards - rewards.mean())
    rao = LOSSES["rao"](centred, beta=B, **hyper).loss
    torch.testing.assert_close(rao, 2 * B * LOSSES["kimi"](inputs, tau=B).loss)


def test_kimi_is_dgro_and_its_baseline_the_limit_of_the_soft_one() -> None:
    inputs = make(GROUPED)
    kimi = LOSSES["kimi"](inputs, tau=TAU).loss
    torch.testing.assert_close(kimi, LOSSES["dgro"](inputs, beta1=1.0, beta2=TAU).loss)
    far = [LOSSES["kimi"](inputs, tau=1e7, baseline=b).loss for b in ("mean", "log_mean_exp")]
    torch.testing.assert_close(far[0], far[1], rtol=1e-6, atol=0)


def test_agro_of_two_is_distillation_and_rebel() -> None:
    inputs = make(PAIRED)
    agro = LOSSES["agro"](inputs, beta=B).loss
    distill = LOSSES["rpo_distill"](inputs, beta=B).loss
    torch.testing.assert_close(agro, distill / 8)
    torch.testing.assert_close(distill, B * B * LOSSES["rebel"](inputs, eta=1 / B).loss)


def test_the_partitions_targets_sum_to_one() -> None:
    """At zero loss the policy is a softmax restricted to the data: sum pi_ref e^target = 1."""
    inputs = make(GROUPED)
    e, _, _ = partition(False)(inputs, inputs.require("rewards").tolist(), ratios(inputs))
    target = [x + d for x, d in zip(e, ratios(inputs), strict=True)]
    one = [math.exp(a + t) for a, t in zip(reference(inputs), target, strict=True)]
    assert sum(one[i] for i in (0, 2, 5)) == pytest.approx(1, rel=1e-12)
    alone = reference(inputs)[1]
    out = LOSSES["reward_partition"](replace(inputs, rewards=inputs.require("rewards") + 7))
    d = ratios(inputs)[1]
    assert out.values[1].item() == pytest.approx((d + alone) ** 2 / 2, rel=1e-12)


@pytest.mark.parametrize("name", ["kimi", "dgro", "agro", "rebel", "reward_partition"])
def test_a_constant_on_the_rewards_of_a_prompt_changes_nothing(name: str) -> None:
    inputs = make(PAIRED)
    shift = torch.tensor([3.0, 3.0, -5.0, -5.0, 0.5, 0.5], dtype=torch.float64)
    shifted = replace(inputs, rewards=inputs.require("rewards") + shift)
    torch.testing.assert_close(LOSSES[name](shifted).loss, LOSSES[name](inputs).loss)


@pytest.mark.parametrize(
    ("name", "knob"), [("dro_value", "tau"), ("kimi", "tau"), ("agro", "beta")]
)
def test_scaling_rewards_and_strength(name: str, knob: str) -> None:
    """The loss is a square of reward; Kimi's is divided by tau."""
    inputs = make(GROUPED)
    scaled = replace(
        inputs, rewards=4 * inputs.require("rewards"), values=4 * inputs.require("values")
    )
    power = 4 if name == "kimi" else 16
    one = LOSSES[name](scaled, **{knob: 4 * B}).loss
    torch.testing.assert_close(one, power * LOSSES[name](inputs, **{knob: B}).loss)


@pytest.mark.parametrize("name", ["kimi", "dgro", "agro"])
def test_equal_rewards_leave_only_the_pull_to_the_reference(name: str) -> None:
    inputs = make(GROUPED)
    inputs = replace(inputs, rewards=torch.full((6,), 2.5, dtype=torch.float64))
    still = replace(inputs, ref_logps=inputs.logps)
    assert LOSSES[name](still).loss.item() == pytest.approx(0, abs=1e-25)
    assert LOSSES[name](inputs).loss > 0


def test_quantiles_count_ties_and_partition_functions_are_integrals() -> None:
    inputs = make((0, 0, 1, 1, 1, 2), preferred=None)
    samples = torch.tensor([0.0, 1.0, 1.0, 2.0, 5.0, 7.0], dtype=torch.float64)
    owners = torch.tensor([0, 0, 0, 0, 1, 2])
    rewards = torch.tensor([1.0, -1.0, 5.0, 4.9, 6.0, 7.0], dtype=torch.float64)
    inputs = replace(inputs, rewards=rewards, ref_rewards=samples, ref_reward_groups=owners)
    out = LOSSES["qrpo"](replace(inputs, ref_logps=inputs.logps), beta=B)
    grid = [(i + 0.5) / 20000 for i in range(20000)]
    log_z = math.log(sum(math.exp(q / B) for q in grid) / len(grid))
    expected = [(q - B * log_z) ** 2 for q in (0.75, 0.0, 1.0, 0.0, 1.0, 1.0)]
    assert out.values.tolist() == pytest.approx(expected, rel=1e-7)
    for kind, reward in (("log", math.log), ("normal", NormalDist().inv_cdf)):
        found = LOSSES["qrpo"](
            replace(inputs, ref_logps=inputs.logps), beta=2.0, quantile_reward=kind
        )
        log_z = math.log(sum(math.exp(reward(q) / 2) for q in grid) / len(grid))
        assert found.values[0].item() == pytest.approx((reward(0.75) - 2 * log_z) ** 2, rel=1e-3)


def test_small_beta_does_not_overflow() -> None:
    """Z of QRPO is exp(1000) at beta = 1e-3."""
    inputs = make(GROUPED)
    assert LOSSES["qrpo"](inputs, beta=1e-3).loss.isfinite()
    single = {"ref_rewards": torch.zeros(3), "ref_reward_groups": torch.arange(3)}
    for clamp in ("half_sample", "authors"):
        hyper = {"quantile_reward": "normal", "quantile_clamp": clamp}
        assert LOSSES["qrpo"](replace(inputs, **single), beta=B, **hyper).loss.isfinite()
    assert LOSSES["a2po"](inputs, beta1=1e-4).loss.isfinite()
    assert LOSSES["reward_partition"](inputs, tau=1e-4).loss.isfinite()


def test_bad_inputs() -> None:
    inputs = make(GROUPED)
    with pytest.raises(InputError, match=r"`values`.*\[S\]"):
        LOSSES["dro_value"](replace(inputs, values=torch.zeros(20)))
    few = {"ref_rewards": torch.zeros(2), "ref_reward_groups": torch.tensor([0, 1])}
    with pytest.raises(InputError, match="none of group 2"):
        LOSSES["a2po"](replace(inputs, **few))
    with pytest.raises(InputError, match="K = 24 reference samples"):
        LOSSES["qrpo"](replace(inputs, ref_reward_groups=torch.tensor([0, 1])))
    for name, hyper in (
        ("qrpo", {"quantile_reward": "linear"}),
        ("qrpo", {"quantile_clamp": "none"}),
        ("dgro", {"baseline": "median"}),
        ("kimi", {"baseline": "max"}),
        ("dgro", {"beta2": 0.0}),
        ("rebel", {"eta": -1.0}),
    ):
        with pytest.raises(InputError, match=next(iter(hyper))):
            LOSSES[name](inputs, **hyper)
