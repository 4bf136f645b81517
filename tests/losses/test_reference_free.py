"""AlphaPO, CPO, SLiC, ORPO and TPO against loops, closed-form gradients, limits and extremes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES, LossInputs

from .cases import GOLD, TRIPLES, coefficients, make, pairs, sums

LENGTHS = (5, 1, 7, 3, 2, 4)


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def found(name: str, inputs: LossInputs, **hyper: Any) -> tuple[list[float], list[float]]:
    """Return values, and the gradient that each sequence's tokens share."""
    tokens = inputs.token_logps.clone().requires_grad_()
    inputs = replace(inputs, token_logps=tokens)
    out = LOSSES[name](inputs, **hyper)
    assert out.loss.item() == pytest.approx(sum(out.values.tolist()) / len(out.values))
    return out.values.tolist(), coefficients(out.loss, tokens, inputs)


def means(inputs: LossInputs) -> list[float]:
    lengths = inputs.lengths.tolist()
    return [s / max(n, 1) for s, n in zip(sums(inputs.token_logps, inputs), lengths, strict=True)]


def test_alphapo() -> None:
    inputs, beta, gamma, alpha = make(lengths=LENGTHS), 0.7, 0.3, 0.25
    m, values, slopes = means(inputs), [], [0.0] * 6
    for w, l in pairs(inputs):  # noqa: E741
        reward = {i: beta * (1 - math.exp(-alpha * m[i])) / alpha for i in (w, l)}
        margin = reward[w] - reward[l] - gamma
        values.append(softplus(-margin))
        for i, sign in ((w, -1), (l, 1)):
            c = sign * sigmoid(-margin) * beta * math.exp(-alpha * m[i])
            slopes[i] = c / 3 / LENGTHS[i]
    hyper = {"beta": beta, "gamma": gamma, "alpha": alpha}
    assert found("alphapo", inputs, **hyper) == (
        pytest.approx(values, rel=1e-12),
        pytest.approx(slopes, rel=1e-11),
    )


def test_alphapo_ends_in_simpo() -> None:
    inputs = make()
    expected = LOSSES["simpo"](inputs, beta=2.0, gamma=0.3).loss
    for alpha in (0.0, 1e-9, -1e-9):
        loss = LOSSES["alphapo"](inputs, beta=2.0, gamma=0.3, alpha=alpha).loss
        torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)


def test_alphapo_of_responses_whose_probability_underflows() -> None:
    """exp(lbar)^-alpha is 1 / 0 at lbar = -800; the reward is -beta e^40 / alpha, by the tangent
    at e^20 -beta e^20 (1 + 20) / alpha."""
    for dtype in (torch.float64, torch.float32):
        inputs = make((0, 0), lengths=(2, 2), preferred=(True, False), dtype=dtype)
        tokens = torch.tensor([-1.0, -1.0, -800.0, -800.0], dtype=dtype, requires_grad=True)
        out = LOSSES["alphapo"](replace(inputs, token_logps=tokens), beta=1.0, alpha=0.05)
        assert out.loss.item() == 0
        flipped = replace(inputs, token_logps=tokens, preferred=torch.tensor([False, True]))
        out = LOSSES["alphapo"](flipped, beta=1.0, alpha=0.05, gamma=0.0)
        expected = 20 * (math.exp(20) * (1 + 20) - math.exp(0.05))
        assert out.loss.item() == pytest.approx(expected, rel=1e-6)
        out = LOSSES["alphapo"](flipped, beta=1.0, alpha=1.0)
        (grad,) = torch.autograd.grad(out.loss, tokens)
        assert out.loss.isfinite() and grad.isfinite().all()
        assert (grad[2:] < 0).all()


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.4])
def test_cpo(weight: float) -> None:
    inputs, beta = make(), 0.3
    s, values, slopes = sums(inputs.token_logps, inputs), [], [math.nan] * 6
    chosen_tokens = sum(inputs.lengths.tolist()[w] for w, _ in pairs(inputs))
    for w, l in pairs(inputs):  # noqa: E741
        u = beta * (s[w] - s[l])
        values.append(softplus(-u) - weight * s[w] * 3 / chosen_tokens)
        slopes[w] = -beta * sigmoid(-u) / 3 - weight / chosen_tokens
        slopes[l] = beta * sigmoid(-u) / 3
    slopes[4] = math.nan
    assert found("cpo", inputs, beta=beta, sft_weight=weight) == (
        pytest.approx(values, rel=1e-12),
        pytest.approx(slopes, rel=1e-11, nan_ok=True),
    )


def test_cpo_is_dpo_without_a_reference_and_a_token_mean() -> None:
    inputs = make()
    free = replace(inputs, ref_logps=torch.zeros(6, dtype=torch.float64))
    dpo = LOSSES["sigmoid"](free, beta=0.3).loss
    torch.testing.assert_close(LOSSES["cpo"](inputs, beta=0.3, sft_weight=0.0).loss, dpo)
    both = LOSSES["cpo"](inputs, beta=0.3, sft_weight=0.7).loss
    torch.testing.assert_close(both, dpo + 0.7 * LOSSES["sft"](inputs).loss)


def test_slic() -> None:
    inputs, margin, weight = make(seed=2), 2.0, 0.1
    s, values, slopes = sums(inputs.token_logps, inputs), [], [math.nan] * 6
    for w, l in pairs(inputs):  # noqa: E741
        slack = margin - s[w] + s[l]
        values.append(max(0.0, slack) - weight * s[w])
        slopes[w] = -(1 if slack > 0 else 0) / 3 - weight / 3
        slopes[l] = (1 if slack > 0 else 0) / 3
    slopes[4] = math.nan
    assert found("slic", inputs, margin=margin) == (
        pytest.approx(values, rel=1e-12),
        pytest.approx(slopes, rel=1e-11, nan_ok=True),
    )
    assert len({v > 0 for v in slopes if v == v and v >= 0}) == 2, "both sides of the hinge"


def odds(m: float) -> float:
    return m - math.log(-math.expm1(m))


def test_orpo() -> None:
    inputs, lam = make(lengths=LENGTHS), 0.25
    m, values, slopes = means(inputs), [], [0.0] * 6
    for w, l in pairs(inputs):  # noqa: E741
        z = odds(m[w]) - odds(m[l])
        values.append(-m[w] + lam * softplus(-z))
        for i, sign in ((w, -1), (l, 1)):
            c = sign * lam * sigmoid(-z) / -math.expm1(m[i]) - (i == w)
            slopes[i] = c / 3 / LENGTHS[i]
    assert found("orpo", inputs, lam=lam) == (
        pytest.approx(values, rel=1e-12),
        pytest.approx(slopes, rel=1e-11),
    )


@pytest.mark.parametrize("level", [-1e-3, -1e-6, -1e-9, -0.6931, -0.6932, -30.0, -700.0])
def test_orpo_near_certainty_and_far_from_it(level: float) -> None:
    """log(1 - p) by log1p(-exp(l)) loses all digits at p = 1 - 1e-9."""
    inputs = make((0, 0), lengths=(2, 2), preferred=(True, False))
    for chosen in (True, False):
        pair = (level, -0.5) if chosen else (-0.5, level)
        tokens = torch.tensor([pair[0]] * 2 + [pair[1]] * 2, dtype=torch.float64)
        values, slopes = found("orpo", replace(inputs, token_logps=tokens), lam=1.0)
        z = odds(pair[0]) - odds(pair[1])
        assert values == pytest.approx([-pair[0] + softplus(-z)], rel=1e-12)
        expected = [
            (-1 - sigmoid(-z) / -math.expm1(pair[0])) / 2,
            sigmoid(-z) / -math.expm1(pair[1]) / 2,
        ]
        assert slopes == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("level", [-1e-3, -1e-6, -(2.0**-23), -(2.0**-24), -1e-9, -1e-30, 0.0])
def test_orpo_of_a_rejected_response_down_to_the_limit_of_fp32(level: float) -> None:
    """dL/dlbar_l = lam sigmoid(-z) / (1 - p) up to the largest p below 1, and constant beyond."""
    inputs = make((0, 0), lengths=(1, 1), preferred=(True, False), dtype=torch.float32)
    tokens = torch.tensor([-0.5, level], requires_grad=True)
    inputs = replace(inputs, token_logps=tokens)
    (grad,) = torch.autograd.grad(LOSSES["orpo"](inputs, lam=0.1).loss, tokens)
    near = min(float(tokens[1].detach()), -(2.0**-24))
    z = odds(-0.5) - odds(near)
    expected = 0.1 * sigmoid(-z) / -math.expm1(near)
    assert grad[1].item() == pytest.approx(expected, rel=1e-6)
    assert (1e4 * grad).square().sum().isfinite()


def test_orpo_at_certainty() -> None:
    """p = 1: log1p(-exp(0)) is -inf, and its gradient nan."""
    for dtype in (torch.float64, torch.float32):
        for certain in (0, 1):
            inputs = make((0, 0), lengths=(1, 1), preferred=(True, False), dtype=dtype)
            tokens = torch.full((2,), -1.0, dtype=dtype)
            tokens[certain] = 0
            values, slopes = found("orpo", replace(inputs, token_logps=tokens))
            assert all(map(math.isfinite, [*values, *slopes]))
            both, slopes = found("orpo", replace(inputs, token_logps=torch.zeros_like(tokens)))
            assert both == pytest.approx([0.1 * math.log(2)])
            assert all(map(math.isfinite, slopes))


# TPO.


def triples(**options: Any) -> LossInputs:
    return make(TRIPLES, lengths=LENGTHS, **options)


def triple(inputs: LossInputs) -> list[tuple[int, int, int]]:
    """Return gold, chosen and rejected sequence of each group."""
    assert inputs.groups is not None and inputs.preferred is not None
    gold = inputs.gold.tolist() if inputs.gold is not None else []
    result = []
    for group in (0, 1):
        members = [s for s, g in enumerate(inputs.groups.tolist()) if g == group]
        (best,) = [s for s in members if gold[s]]
        rest = [s for s in members if not gold[s]]
        result.append((best, *sorted(rest, key=lambda s: not inputs.preferred[s])))
    return result


@pytest.mark.parametrize("normalized", [False, True])
def test_tpo(normalized: bool) -> None:
    inputs, beta, gamma, weight = triples(), 0.2, 0.3, 0.6
    level = means(inputs) if normalized else sums(inputs.token_logps, inputs)
    s, values, slopes = sums(inputs.token_logps, inputs), [], [0.0] * 6
    gold_tokens = sum(LENGTHS[g] for g, _, _ in triple(inputs))
    for g, w, l in triple(inputs):  # noqa: E741
        margin = beta * (level[w] - level[l]) - gamma
        values.append(softplus(-margin) - weight * s[g] * 2 / gold_tokens)
        slopes[g] = -weight / gold_tokens
        for i, sign in ((w, -1), (l, 1)):
            slopes[i] = sign * beta * sigmoid(-margin) / 2 / (LENGTHS[i] if normalized else 1)
    hyper = {"beta": beta, "gamma": gamma, "sft_weight": weight, "length_normalized": normalized}
    assert found("tpo", inputs, **hyper) == (
        pytest.approx(values, rel=1e-12),
        pytest.approx(slopes, rel=1e-11),
    )
    assert LOSSES["tpo"].count_units(inputs) == 2


def test_tpo_without_its_gold_term_is_cpo_on_the_other_two() -> None:
    inputs = triples()
    order = [i for _, w, l in triple(inputs) for i in (w, l)]  # noqa: E741
    rows = torch.cat([torch.nonzero(inputs.segments == i)[:, 0] for i in order])
    two = LossInputs(
        token_logps=inputs.token_logps[rows],
        segments=torch.repeat_interleave(torch.tensor([LENGTHS[i] for i in order])),
        num_sequences=4,
        groups=torch.tensor([0, 0, 1, 1]),
        preferred=torch.tensor([True, False, True, False]),
    )
    hyper = {"beta": 0.2, "sft_weight": 0.0}
    torch.testing.assert_close(
        LOSSES["tpo"](inputs, **hyper).loss, LOSSES["cpo"](two, **hyper).loss
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"gold": torch.zeros(6, dtype=torch.bool)},
        {"gold": torch.ones(6, dtype=torch.bool)},
        {"preferred": torch.zeros(6, dtype=torch.bool)},
        {"groups": torch.tensor([0, 0, 0, 0, 1, 1])},
    ],
)
def test_tpo_wants_triples(changes: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InputError, match="`gold`.*one gold.*group 0"):
        LOSSES["tpo"](replace(triples(), **changes))


def test_tpo_wants_a_multiple_of_three() -> None:
    inputs = make((0, 0), lengths=(2, 2), preferred=(True, False))
    with pytest.raises(InputError, match="`gold`.*2 sequences"):
        LOSSES["tpo"](replace(inputs, gold=torch.tensor(GOLD[:2])))


# All of them.


@pytest.mark.parametrize("name", ["simpo", "alphapo", "cpo", "tpo"])
def test_label_smoothing_is_a_mixture(name: str) -> None:
    inputs = triples() if name == "tpo" else make()
    rest = {"sft_weight": 0.0} if name in ("cpo", "tpo") else {}
    rest |= {} if name in ("cpo", "tpo") else {"gamma": 0.0}
    straight = LOSSES[name](inputs, **rest)
    margins = 1 - 2 * 0.3
    smooth = LOSSES[name](inputs, label_smoothing=0.3, **rest).loss
    flipped = LOSSES[name](inputs, label_smoothing=1.0, **rest).loss
    torch.testing.assert_close(smooth, 0.7 * straight.loss + 0.3 * flipped)
    torch.testing.assert_close(flipped - straight.loss, straight.metrics["rewards/margins"])
    assert margins > 0


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("alphapo", {"beta": 0.0}),
        ("cpo", {"sft_weight": -1.0}),
        ("simpo", {"label_smoothing": 1.5}),
        ("tpo", {"beta": -1.0}),
    ],
)
def test_bad_values(name: str, hyper: dict[str, float]) -> None:
    inputs = triples() if name == "tpo" else make()
    with pytest.raises(InputError, match=f"`{next(iter(hyper))}`"):
        LOSSES[name](inputs, **hyper)
