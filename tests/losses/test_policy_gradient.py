"""Policy gradients against per-token loops, closed-form gradients, limits and extremes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES, LossInputs

from .cases import GROUPED, make, permuted


def cases(**options: Any) -> LossInputs:
    """Prompts with three, one and two responses, one of them empty."""
    return make(GROUPED, per_token=True, **options)


def gradient(name: str, inputs: LossInputs, **hyper: Any) -> tuple[float, list[float]]:
    tokens = inputs.token_logps.clone().requires_grad_()
    out = LOSSES[name](replace(inputs, token_logps=tokens), **hyper)
    (grad,) = torch.autograd.grad(out.loss, tokens)
    return out.loss.item(), grad.tolist()


# The same by loops over Python floats.


@dataclass
class Response:
    """Tokens of a sequence: position in the batch, log-prob, log-ratio, reference less policy."""

    where: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)


def responses(inputs: LossInputs) -> list[Response]:
    found = [Response() for _ in range(inputs.num_sequences)]
    logps, old = inputs.token_logps.tolist(), inputs.token_logps.tolist()
    if inputs.old_token_logps is not None:
        old = inputs.old_token_logps.tolist()
    reference = logps if inputs.ref_token_logps is None else inputs.ref_token_logps.tolist()
    for t, s in enumerate(inputs.segments.tolist()):
        found[s].where.append(t)
        found[s].logps.append(logps[t])
        found[s].ratios.append(logps[t] - old[t])
        found[s].reference.append(reference[t] - logps[t])
    return found


def groups_of(inputs: LossInputs) -> Iterator[list[int]]:
    assert inputs.groups is not None
    groups = inputs.groups.tolist()
    for group in sorted(set(groups)):
        yield [s for s, g in enumerate(groups) if g == group]


def standardized(inputs: LossInputs, eps: float = 1e-4, population: bool = False) -> list[float]:
    assert inputs.rewards is not None
    r = inputs.rewards.tolist()
    found = [0.0] * len(r)
    for members in groups_of(inputs):
        mean = math.fsum(r[s] for s in members) / len(members)
        squares = math.fsum((r[s] - mean) ** 2 for s in members)
        freedom = len(members) - (0 if population else 1)
        std = math.sqrt(squares / freedom) if freedom else 0.0
        for s in members:
            found[s] = (r[s] - mean) / (std + eps)
    return found


def centred(inputs: LossInputs) -> list[float]:
    assert inputs.rewards is not None
    r = inputs.rewards.tolist()
    found = [0.0] * len(r)
    for members in groups_of(inputs):
        for s in members:
            found[s] = r[s] - math.fsum(r[i] for i in members) / len(members)
    return found


def left_out(rewards: list[float], inputs: LossInputs) -> list[float]:
    found = [0.0] * len(rewards)
    for members in groups_of(inputs):
        for s in members:
            others = [rewards[i] for i in members if i != s]
            found[s] = rewards[s] - math.fsum(others) / len(others) if others else 0.0
    return found


def clipped_loop(
    inputs: LossInputs,
    advantages: list[float],
    *,
    level: str,
    mean: str,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
    kl: float = 0.0,
    budget: float = 1.0,
) -> tuple[float, list[float]]:
    """Loss and gradient of PPO's surrogate; `level` token, mean or sum of log-ratios."""
    parts, gradient = [], [0.0] * inputs.token_logps.numel()
    for response, a in zip(responses(inputs), advantages, strict=True):
        n = len(response.where)
        share = {
            "sequence": 1 / (inputs.num_sequences * max(n, 1)),
            "token": 1 / inputs.token_logps.numel(),
            "sum": 1 / (inputs.num_sequences * budget),
        }[mean]
        for t, d, ref in zip(response.where, response.ratios, response.reference, strict=True):
            x = {"token": d, "mean": sum(response.ratios) / n, "sum": sum(response.ratios)}[level]
            rho = math.exp(x)
            term = -min(rho * a, min(max(rho, 1 - low), 1 + high) * a)
            active = not (a > 0 and rho > 1 + high) and not (a < 0 and rho < 1 - low)
            if dual is not None and a < 0 and rho > dual:
                term, active = -dual * a, False
            parts.append(share * (term + kl * (math.exp(ref) - ref - 1)))
            gradient[t] += share * kl * (1 - math.exp(ref))
            slope = -a * rho * share if active else 0.0
            for u in [t] if level == "token" else response.where:
                gradient[u] += slope / n if level == "mean" else slope
    return math.fsum(parts), gradient


LEVELS = {
    "grpo": {"level": "token", "mean": "sequence"},
    "dr_grpo": {"level": "token", "mean": "sum"},
    "dapo": {"level": "token", "mean": "token", "high": 0.28},
    "bnpo": {"level": "token", "mean": "token"},
    "gspo": {"level": "mean", "mean": "sequence", "low": 3e-4, "high": 4e-4},
    "luspo": {"level": "mean", "mean": "sum", "low": 2e-3, "high": 2.5e-3},
    "rloo": {"level": "sum", "mean": "sequence"},
}


def advantages_of(name: str, inputs: LossInputs) -> list[float]:
    if name == "dr_grpo":
        return centred(inputs)
    if name == "rloo":
        assert inputs.rewards is not None
        return left_out(inputs.rewards.tolist(), inputs)
    return standardized(inputs)


def check(found: tuple[float, list[float]], expected: tuple[float, list[float]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-12, abs=1e-14)
    assert found[1] == pytest.approx(expected[1], rel=1e-11, abs=1e-15)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("seed", range(3))
def test_defaults(name: str, seed: int) -> None:
    inputs = cases(seed=seed)
    expected = clipped_loop(inputs, advantages_of(name, inputs), **LEVELS[name])
    check(gradient(name, inputs), expected)


@pytest.mark.parametrize("name", LEVELS)
def test_clips(name: str) -> None:
    """Bounds so narrow that both sides and the dual clip act."""
    inputs = cases(seed=3)
    options = {**LEVELS[name], "low": 0.05, "high": 0.1, "dual": 1.01}
    expected = clipped_loop(inputs, advantages_of(name, inputs), **options)
    hyper = {"clip_low": 0.05, "clip_high": 0.1, "dual_clip": 1.01}
    check(gradient(name, inputs, **hyper), expected)
    assert expected[0] != pytest.approx(gradient(name, inputs, clip_low=0.05, clip_high=0.1)[0])


@pytest.mark.parametrize("name", [n for n in LEVELS if n != "rloo"])
def test_penalty(name: str) -> None:
    inputs = cases(seed=1)
    expected = clipped_loop(inputs, advantages_of(name, inputs), kl=0.3, **LEVELS[name])
    check(gradient(name, inputs, kl_beta=0.3), expected)


@pytest.mark.parametrize("name", sorted({*LEVELS, "gmpo", "cispo", "sapo", "vespo", "ppo"}))
def test_a_reference_alone_is_no_penalty(name: str) -> None:
    inputs = replace(cases(), advantages=torch.randn(6, dtype=torch.float64))
    bare = replace(inputs, ref_token_logps=None, ref_logps=None)
    assert gradient(name, inputs) == gradient(name, bare)
    with pytest.raises(InputError, match="needs `ref"):
        LOSSES[name](bare, kl_beta=0.1)


@pytest.mark.parametrize("name", sorted({*LEVELS, "gmpo", "cispo", "sapo", "vespo"}))
def test_advantages_win_over_rewards(name: str) -> None:
    inputs = cases()
    estimated = torch.tensor(advantages_of(name, inputs), dtype=torch.float64)
    given = replace(inputs, advantages=estimated, rewards=inputs.rewards + torch.arange(6) ** 2)
    check(gradient(name, given), gradient(name, inputs))
    per_token = replace(given, advantages=estimated[inputs.segments])
    check(gradient(name, per_token), gradient(name, inputs))
    # Given, they need neither rewards nor groups.
    bare = replace(given, rewards=None, groups=None)
    assert gradient(name, bare) == gradient(name, given)
    with pytest.raises(InputError, match="`groups`"):
        LOSSES[name](replace(inputs, groups=None))


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
    """The normaliser counts sequences: a mean of batch means, where dapo's is over all tokens."""
    one, other = make(lengths=(5, 1) + (0,) * 4), make(lengths=(3, 3, 2, 4, 1, 1), seed=1)
    spec = LOSSES["bnpo"]
    total = sum(spec(part, normalizer=12).loss for part in (one, other))
    torch.testing.assert_close(total, (spec(one).loss + spec(other).loss) / 2)
    dapo = [LOSSES["dapo"](p, normalizer=20, clip_high=0.2).loss for p in (one, other)]
    assert spec.unit == "sequence"
    assert sum(dapo) != pytest.approx(total.item())


# The other surrogates.


def test_gmpo() -> None:
    inputs, low, high = cases(), 0.1, 0.15
    parts, expected = [], [0.0] * 20
    for response, a in zip(responses(inputs), standardized(inputs), strict=True):
        if not response.where:
            continue
        n = len(response.where)
        kept = [min(d, high) if a >= 0 else max(d, -low) for d in response.ratios]
        level = math.exp(math.fsum(kept) / n)
        parts.append(-a * level / 6)
        for t, d, k in zip(response.where, response.ratios, kept, strict=True):
            expected[t] = -a * level / n / 6 if d == k else 0.0
    check(gradient("gmpo", inputs, clip_low=low, clip_high=high), (math.fsum(parts), expected))


def test_cispo() -> None:
    """The weight ends at 1 + clip_high, not at clip_high, and has no gradient."""
    inputs = cases()
    for low, high in ((0.2, 0.2), (1.0, 4.0), (0.1, 0.05)):
        parts, expected = [], [0.0] * 20
        for response, a in zip(responses(inputs), standardized(inputs), strict=True):
            for t, logp, d in zip(response.where, response.logps, response.ratios, strict=True):
                weight = min(max(math.exp(d), 1 - low), 1 + high)
                parts.append(-weight * a * logp / 20)
                expected[t] = -weight * a / 20
        check(gradient("cispo", inputs, clip_low=low, clip_high=high), (sum(parts), expected))
    on_policy = replace(inputs, old_token_logps=None)
    found = gradient("cispo", on_policy, clip_low=0.2, clip_high=0.2)[1]
    assert found[0] == pytest.approx(-standardized(inputs)[0] / 20)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_sapo() -> None:
    inputs = cases()
    parts, expected = [], [0.0] * 20
    for response, a in zip(responses(inputs), standardized(inputs), strict=True):
        temperature = 0.9 if a > 0 else 1.3
        for t, d in zip(response.where, response.ratios, strict=True):
            rho, share = math.exp(d), 1 / (6 * len(response.where))
            gate = sigmoid(temperature * (rho - 1))
            parts.append(-4 / temperature * gate * a * share)
            expected[t] = -4 * gate * (1 - gate) * rho * a * share
    found = gradient("sapo", inputs, temperature_pos=0.9, temperature_neg=1.3)
    check(found, (math.fsum(parts), expected))


def test_vespo() -> None:
    inputs = cases()
    parts, expected = [], [0.0] * 20
    for response, a in zip(responses(inputs), standardized(inputs), strict=True):
        k, lam = (2.0, 3.0) if a >= 0 else (3.0, 2.0)
        log_w = math.fsum(response.ratios)
        phi = math.exp(lam + k * log_w - lam * math.exp(log_w))
        for t, logp in zip(response.where, response.logps, strict=True):
            parts.append(-phi * a * logp / 20)
            expected[t] = -phi * a / 20
    check(gradient("vespo", inputs), (math.fsum(parts), expected))
    with pytest.raises(InputError, match="`lam`"):
        LOSSES["vespo"](inputs, lam=3.0)


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


# PPO.


def ppo_inputs() -> LossInputs:
    inputs = cases()
    draw = torch.Generator().manual_seed(4)
    numbers = [torch.randn(20, generator=draw, dtype=torch.float64) for _ in range(4)]
    return replace(
        inputs,
        advantages=numbers[0],
        returns=numbers[1],
        old_values=numbers[2],
        values=numbers[2] + numbers[3],
    )


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


# GRAO.

GOLD = torch.tensor([False, True, True, False, False, False])
GRAO_GROUPS = torch.tensor([0, 1, 0, 1, 1, 0])


def grao_inputs(**options: Any) -> LossInputs:
    """Two prompts with two samples and a gold answer each."""
    inputs = make((0, 1, 0, 1, 1, 0), lengths=(5, 2, 7, 3, 1, 4), per_token=True, **options)
    return replace(inputs, gold=GOLD)


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


# Limits and identities.


@pytest.mark.parametrize("name", LEVELS)
def test_without_old_log_probs_it_is_reinforce(name: str) -> None:
    """Ratios are 1: the gradient is that of -A times the log-probability."""
    inputs = replace(cases(), old_token_logps=None)
    found = gradient(name, inputs)
    check(found, clipped_loop(inputs, advantages_of(name, inputs), **LEVELS[name]))
    same = replace(inputs, old_token_logps=inputs.token_logps)
    check(gradient(name, same), found)
    a, texts = advantages_of(name, inputs), responses(inputs)
    assert found[1][texts[0].where[0]] < 0 if a[0] > 0 else found[1][texts[0].where[0]] > 0
    assert any(found[1])


def test_at_ratio_one_every_surrogate_has_the_gradient_of_reinforce() -> None:
    inputs = replace(cases(), old_token_logps=None)
    reference = gradient("dapo", inputs)[1]
    for name in ("cispo", "vespo", "bnpo"):
        assert gradient(name, inputs)[1] == pytest.approx(reference, rel=1e-12)
    reference = gradient("grpo", inputs)[1]
    for name in ("gspo", "gmpo", "sapo"):
        assert gradient(name, inputs)[1] == pytest.approx(reference, rel=1e-12)


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


def test_cispo_has_ppos_gradient_inside_the_range() -> None:
    inputs = cases()
    wide = {"clip_low": 0.99, "clip_high": 50.0}
    assert gradient("cispo", inputs, **wide)[1] == pytest.approx(
        gradient("dapo", inputs, **wide)[1]
    )


@pytest.mark.parametrize("name", sorted({*LEVELS, "gmpo", "cispo", "sapo", "vespo"}))
def test_rewards_up_to_shift_and_scale(name: str) -> None:
    inputs = cases()
    assert inputs.rewards is not None
    shifted = gradient(name, replace(inputs, rewards=inputs.rewards + 7))
    check_close(shifted, gradient(name, inputs))
    doubled = gradient(name, replace(inputs, rewards=2 * inputs.rewards), **tiny(name))
    factor = 2 if name in ("dr_grpo", "rloo") else 1
    once = gradient(name, inputs, **tiny(name))
    check_close(doubled, (factor * once[0], [factor * g for g in once[1]]))


def tiny(name: str) -> dict[str, float]:
    return {} if name in ("dr_grpo", "rloo") else {"eps": 1e-12}


def check_close(found: tuple[float, list[float]], expected: tuple[float, list[float]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-9, abs=1e-12)
    assert found[1] == pytest.approx(expected[1], rel=1e-9, abs=1e-12)


def test_sign_of_the_advantage() -> None:
    inputs = replace(cases(), old_token_logps=None, advantages=torch.randn(6, dtype=torch.float64))
    assert inputs.advantages is not None
    flipped = replace(inputs, advantages=-inputs.advantages)
    for name in ("grpo", "gspo", "rloo", "cispo", "gmpo"):
        one, other = gradient(name, inputs), gradient(name, flipped)
        assert one[1] == pytest.approx([-g for g in other[1]], rel=1e-12)


@pytest.mark.parametrize("name", sorted({*LEVELS, "gmpo", "cispo", "sapo", "vespo"}))
def test_groups_whose_rewards_are_all_equal_have_no_gradient(name: str) -> None:
    """Exactly none: 0.1 three times has a mean that is not 0.1, and eps would magnify that."""
    for dtype in (torch.float64, torch.float32):
        inputs = cases(dtype=dtype)
        equal = replace(inputs, rewards=torch.full((6,), 0.1, dtype=dtype))
        hyper = {} if name in ("dr_grpo", "rloo") else {"eps": 1e-12}
        assert gradient(name, equal, **hyper) == (0.0, [0.0] * 20)


def test_grao_with_equal_rewards_imitates_within_eps() -> None:
    inputs = grao_inputs()
    rewards = torch.where(GOLD, 1.0, 0.0).double()
    loss, found = gradient("grao", replace(inputs, rewards=rewards), eps=0.5)
    texts = responses(inputs)
    assert math.isfinite(loss)
    for s, gold in enumerate(GOLD.tolist()):
        for t in texts[s].where:
            assert found[t] == pytest.approx(-0.5 * 2 / len(texts[s].where) / 2 if gold else 0)


# Extremes.


def extreme(difference: list[float], advantages: list[float]) -> LossInputs:
    tokens = torch.full((len(difference),), -2e4)
    return LossInputs(
        token_logps=tokens,
        segments=torch.arange(len(difference)),
        num_sequences=len(difference),
        old_token_logps=tokens - torch.tensor(difference),
        ref_token_logps=tokens - torch.tensor(difference),
        advantages=torch.tensor(advantages),
    )


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
    assert 1e30 < loss < 3e38
    assert 1e30 < slope < 3e38


@pytest.mark.parametrize("name", sorted({*LEVELS, "gmpo", "cispo", "sapo", "vespo"}))
@pytest.mark.parametrize("kl_beta", [0.0, 0.1])
def test_extreme_ratios_are_finite(name: str, kl_beta: float) -> None:
    if name == "rloo" and kl_beta:
        pytest.skip("its penalty is part of the reward")
    inputs = extreme([1e4, -1e4, 1e4, -1e4, 1e4, -1e4], [1.0, 1.0, -1.0, -1.0, 0.0, 0.0])
    loss, found = gradient(name, inputs, kl_beta=kl_beta)
    assert math.isfinite(loss)
    assert all(map(math.isfinite, found))


def test_penalty_far_from_the_reference() -> None:
    """Far above the reference it is -d - 1; far below it pulls up rather than stopping."""
    (value,) = LOSSES["grpo"](extreme([1e4], [0.0]), kl_beta=1.0).values.tolist()
    assert value == pytest.approx(1e4 - 1)
    _, (slope,) = gradient("grpo", extreme([1e4], [0.0]), kl_beta=1.0)
    assert slope == pytest.approx(1.0)
    _, (slope,) = gradient("grpo", extreme([-1e4], [0.0]), kl_beta=1.0)
    assert -3e38 < slope < -1e30


def test_penalty_of_a_small_difference_keeps_its_digits() -> None:
    """exp(d) - d - 1 in fp32 is noise at d = 1e-4; d^2 / 2 is what it means."""
    inputs = extreme([0.0], [0.0])
    assert inputs.ref_token_logps is not None
    reference = torch.tensor([-1.0])
    inputs = replace(inputs, token_logps=reference + 1e-4, ref_token_logps=reference)
    inputs = replace(inputs, old_token_logps=None)
    difference = float(reference) - float(inputs.token_logps)
    (value,) = LOSSES["grpo"](inputs, kl_beta=1.0).values.tolist()
    assert value == pytest.approx(difference**2 / 2, rel=1e-4)


def test_sequence_ratio_of_many_tokens_is_summed_exactly() -> None:
    """fp32 sums of 60,000 log-ratios lose more than clip ranges of 3e-4 are wide."""
    generator = torch.Generator().manual_seed(0)
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


def test_values_per_sequence_and_lengths_zero() -> None:
    inputs = cases()
    for name in ("grpo", "gspo", "luspo", "rloo", "gmpo", "sapo", "dr_grpo", "bnpo"):
        values = LOSSES[name](inputs).values
        assert values.shape == (6,)
        assert values[4] == 0
    empty = make(GROUPED, lengths=(0,) * 6, per_token=True)
    for name in sorted({*LEVELS, "gmpo", "cispo", "sapo", "vespo", "grao"}):
        assert LOSSES[name](empty).loss == 0


@pytest.mark.parametrize("name", ["grpo", "rloo", "grao", "gspo"])
def test_order_of_sequences(name: str) -> None:
    inputs = grao_inputs()
    shuffled = permuted(inputs, [3, 0, 5, 4, 2, 1])
    torch.testing.assert_close(
        LOSSES[name](inputs).loss, LOSSES[name](shuffled).loss, rtol=1e-12, atol=0
    )


def test_metrics() -> None:
    inputs = cases()
    out = LOSSES["grpo"](inputs, clip_low=0.1, clip_high=0.1, kl_beta=0.1)
    a = standardized(inputs)
    low = high = ratio = kl = 0.0
    for response, advantage in zip(responses(inputs), a, strict=True):
        for d, ref in zip(response.ratios, response.reference, strict=True):
            low += (math.exp(d) < 0.9 and advantage < 0) / 20
            high += (math.exp(d) > 1.1 and advantage > 0) / 20
            ratio += math.exp(d) / 20
            kl += (math.exp(ref) - ref - 1) / 20
    assert {name: value.item() for name, value in out.metrics.items()} == pytest.approx(
        {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "ratio/mean": ratio, "kl": kl}
    )
    assert low and high


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("grpo", {"clip_low": -0.1}),
        ("grpo", {"clip_low": 1.5}),
        ("dapo", {"clip_high": math.nan}),
        ("gmpo", {"clip_low": -1.0}),
        ("ppo", {"dual_clip": 0.5}),
        ("ppo", {"value_coef": -1.0}),
        ("ppo", {"value_clip": 0.0}),
        ("grpo", {"kl_beta": -0.1}),
        ("grpo", {"eps": 0.0}),
        ("dr_grpo", {"max_completion_length": 0}),
        ("sapo", {"temperature_neg": 0.0}),
        ("vespo", {"k": 2.0}),
    ],
)
def test_bad_values(name: str, hyper: dict[str, Any]) -> None:
    inputs = ppo_inputs() if name == "ppo" else cases()
    with pytest.raises(InputError, match=f"`{next(iter(hyper))}`"):
        LOSSES[name](inputs, **hyper)


def test_gradients_flow_to_nothing_else() -> None:
    """Advantages, old and reference log-probs are constants."""
    inputs = ppo_inputs()
    constants: list[Tensor] = []
    for name in ("advantages", "old_token_logps", "ref_token_logps", "returns", "old_values"):
        constants.append(getattr(inputs, name).clone().requires_grad_())
        inputs = replace(inputs, **{name: constants[-1]})
    tokens = inputs.token_logps.clone().requires_grad_()
    inputs = replace(inputs, token_logps=tokens)
    for name in ("ppo", "grpo", "vespo", "sapo"):
        loss = LOSSES[name](inputs, kl_beta=0.1).loss
        found = torch.autograd.grad(loss, [tokens, *constants], allow_unused=True)
        assert found[0] is not None
        assert all(g is None for g in found[1:])
