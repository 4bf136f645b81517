"""Pair losses with a reference against the formulas on Python floats: values and dL/dD."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from rao_kernels.losses import LOSSES, LossInputs

from .cases import coefficients, make, pairs, ratios, sums
from .scalars import entropy, logistic, softplus

B, E = 0.4, 0.2


@dataclass(frozen=True)
class Pair:
    """Inputs of a formula: log-ratios, lengths, rewards under the loss's model and others."""

    dw: float
    dl: float
    nw: int = 2
    nl: int = 2
    gap: float = 0.0
    gaps: tuple[float, ...] = ()
    lw: float = 0.0

    @property
    def h(self) -> float:
        return self.dw - self.dl

    @property
    def u(self) -> float:
        return B * self.h


@dataclass(frozen=True)
class Formula:
    """Value and (dL/dD_w, dL/dD_l) of one pair."""

    name: str
    hyper: dict[str, object]
    value: Callable[[Pair], float]
    slopes: Callable[[Pair], tuple[float, float]]


def margin(
    name: str,
    hyper: dict[str, object],
    value: Callable[[Pair], float],
    slope: Callable[[Pair], float],
) -> Formula:
    """Return the formula of a function of u, given its derivative in u."""
    return Formula(name, {"beta": B, **hyper}, value, lambda p: (B * slope(p), -B * slope(p)))


def bell(x: float) -> float:
    return logistic(x) * logistic(-x)


def mean_margin(p: Pair) -> float:
    return p.dw / max(p.nw, 1) - p.dl / max(p.nl, 1)


def kl(a: float, b: float) -> float:
    """Return the KL of Bernoulli(logistic(a)) to Bernoulli(logistic(b))."""
    return logistic(a) * (softplus(-b) - softplus(-a)) + logistic(-a) * (softplus(b) - softplus(a))


def discopop(p: Pair) -> tuple[float, float]:
    g = logistic(p.u / 0.3)
    value = (1 - g) * softplus(-p.u) + g * math.exp(-p.u)
    change = g * (1 - g) / 0.3 * (math.exp(-p.u) - softplus(-p.u))
    return value, -(1 - g) * logistic(-p.u) - g * math.exp(-p.u) + change


def dpop(p: Pair) -> tuple[float, float, float]:
    u = B * (p.h - 3.0 * max(0, -p.dw))
    k = B * logistic(-u)
    return softplus(-u), -k * (1 + 3.0 * (p.dw < 0)), k


HALF = 1 / (2 * B)
ROBUST = E / (1 - 2 * E)
EXO = math.log((1 - E) / E)
FORMULAS = [
    margin("sigmoid", {}, lambda p: softplus(-p.u), lambda p: -logistic(-p.u)),
    margin(
        "cdpo",
        {"label_smoothing": E},
        lambda p: (1 - E) * softplus(-p.u) + E * softplus(p.u),
        lambda p: logistic(p.u) - (1 - E),
    ),
    margin(
        "robust",
        {"label_smoothing": E},
        lambda p: ((1 - E) * softplus(-p.u) - E * softplus(p.u)) / (1 - 2 * E),
        lambda p: -logistic(-p.u) - ROBUST,
    ),
    Formula(
        "sigmoid_norm",
        {"beta": B},
        lambda p: softplus(-B * mean_margin(p)),
        lambda p: (
            -B * logistic(-B * mean_margin(p)) / max(p.nw, 1),
            B * logistic(-B * mean_margin(p)) / max(p.nl, 1),
        ),
    ),
    Formula(
        "ipo",
        {"tau": B},
        lambda p: (p.h - HALF) ** 2,
        lambda p: (2 * (p.h - HALF), -2 * (p.h - HALF)),
    ),
    Formula(
        "ipo",
        {"tau": B, "length_normalized": True},
        lambda p: (mean_margin(p) - HALF) ** 2,
        lambda p: (
            2 * (mean_margin(p) - HALF) / max(p.nw, 1),
            -2 * (mean_margin(p) - HALF) / max(p.nl, 1),
        ),
    ),
    margin("hinge", {}, lambda p: max(0.0, 1 - p.u), lambda p: -float(p.u < 1)),
    margin("rpo_distill", {}, lambda p: (p.gap - p.u) ** 2, lambda p: -2 * (p.gap - p.u)),
    margin(
        "rpo_pessimistic",
        {},
        lambda p: min((g - p.u) ** 2 for g in p.gaps),
        lambda p: -2 * min((g - p.u for g in p.gaps), key=abs),
    ),
    Formula(
        "rpo_pessimistic",
        {"beta": B, "gamma": 0.3},
        lambda p: min((g - p.u) ** 2 for g in p.gaps) - 0.3 * (p.dw + p.dl) / 2,
        lambda p: (
            -2 * B * min((g - p.u for g in p.gaps), key=abs) - 0.15,
            2 * B * min((g - p.u for g in p.gaps), key=abs) - 0.15,
        ),
    ),
    margin(
        "rpo_bwd_kl",
        {"eta": 1.5},
        lambda p: softplus(-p.u) + logistic(-1.5 * p.gap) * p.u - entropy(logistic(1.5 * p.gap)),
        lambda p: logistic(p.u) - logistic(1.5 * p.gap),
    ),
    margin(
        "rpo_fwd_kl",
        {"eta": 1.5},
        lambda p: kl(p.u, 1.5 * p.gap),
        lambda p: bell(p.u) * (p.u - 1.5 * p.gap),
    ),
    margin(
        "exo_pair",
        {"label_smoothing": E},
        lambda p: kl(p.u, EXO),
        lambda p: bell(p.u) * (p.u - EXO),
    ),
    margin("discopop", {"tau": 0.3}, lambda p: discopop(p)[0], lambda p: discopop(p)[1]),
    margin(
        "r_dpo",
        {"alpha": 0.15},
        lambda p: softplus(-(p.u + 0.15 * (p.nw - p.nl))),
        lambda p: -logistic(-(p.u + 0.15 * (p.nw - p.nl))),
    ),
    Formula(
        "dpo_nll",
        {"beta": B, "sft_weight": 0.7},
        lambda p: softplus(-p.u) - 0.7 * p.lw / max(p.nw, 1),
        lambda p: (-B * logistic(-p.u) - 0.7 / max(p.nw, 1), B * logistic(-p.u)),
    ),
    Formula(
        "cal_dpo",
        {"beta": B, "calibration_weight": 0.5},
        lambda p: softplus(-p.h) + 0.5 * ((p.dw - HALF) ** 2 + (p.dl + HALF) ** 2),
        lambda p: (-logistic(-p.h) + p.dw - HALF, logistic(-p.h) + p.dl + HALF),
    ),
    Formula(
        "dpop",
        {"beta": B, "dpop_lambda": 3.0},
        lambda p: dpop(p)[0],
        lambda p: dpop(p)[1:],
    ),
    Formula(
        "dpo_shift",
        {"beta": B, "shift": 0.7},
        lambda p: softplus(-B * (p.dw - 0.7 * p.dl)),
        lambda p: (
            -B * logistic(-B * (p.dw - 0.7 * p.dl)),
            0.7 * B * logistic(-B * (p.dw - 0.7 * p.dl)),
        ),
    ),
    Formula(
        "apo_down",
        {"beta": B},
        lambda p: logistic(B * p.dw) + 1 - logistic(p.u),
        lambda p: (B * (bell(B * p.dw) - bell(p.u)), B * bell(p.u)),
    ),
    Formula(
        "apo_zero",
        {"beta": B},
        lambda p: 1 - logistic(B * p.dw) + logistic(B * p.dl),
        lambda p: (-B * bell(B * p.dw), B * bell(B * p.dl)),
    ),
    Formula(
        "nca_pair",
        {"beta": B},
        lambda p: softplus(-B * p.dw) + 0.5 * softplus(B * p.dw) + 0.5 * softplus(B * p.dl),
        lambda p: (B * (1.5 * logistic(B * p.dw) - 1), B / 2 * logistic(B * p.dl)),
    ),
    Formula(
        "bco_pair",
        {"beta": B, "delta": 0.3},
        lambda p: softplus(0.3 - B * p.dw) + softplus(B * p.dl - 0.3),
        lambda p: (-B * logistic(0.3 - B * p.dw), B * logistic(B * p.dl - 0.3)),
    ),
    Formula(
        "sppo_hard",
        {"beta": B},
        lambda p: (p.dw - HALF) ** 2 + (p.dl + HALF) ** 2,
        lambda p: (2 * (p.dw - HALF), 2 * (p.dl + HALF)),
    ),
]
formulas = pytest.mark.parametrize(
    "formula", FORMULAS, ids=lambda f: f"{f.name}-{'-'.join(map(str, f.hyper))}"
)
# At u = 0: value, and (dL/dD_w, dL/dD_l), written out by hand.
LN2 = math.log(2)
AT_REFERENCE = {
    "sigmoid": (LN2, -B / 2, B / 2),
    "cdpo": (LN2, -B * (0.5 - E), B * (0.5 - E)),
    "robust": (LN2, -B / (2 * (1 - 2 * E)), B / (2 * (1 - 2 * E))),
    "hinge": (1, -B, B),
    "exo_pair": (-0.5 * math.log(4 * E * (1 - E)), -B / 4 * EXO, B / 4 * EXO),
    "apo_down": (1, 0, B / 4),
    "apo_zero": (1, -B / 4, B / 4),
    "nca_pair": (2 * LN2, -B / 4, B / 4),
    "sppo_hard": (1 / (2 * B * B), -1 / B, 1 / B),
    "dpo_shift": (LN2, -B / 2, 0.7 * B / 2),
}


def pairs_of(inputs: LossInputs) -> list[Pair]:
    d, n = ratios(inputs), inputs.lengths.tolist()
    logps = sums(inputs.token_logps, inputs)
    rewards = inputs.require("rewards").tolist()
    models = inputs.require("reward_ensemble").tolist()
    return [
        Pair(
            d[w],
            d[v],
            n[w],
            n[v],
            rewards[w] - rewards[v],
            tuple(model[w] - model[v] for model in models),
            logps[w],
        )
        for w, v in pairs(inputs)
    ]


@formulas
@pytest.mark.parametrize("per_token", [False, True])
def test_value_and_gradient(formula: Formula, per_token: bool) -> None:
    inputs = make(per_token=per_token)
    tokens = inputs.token_logps.requires_grad_()
    out = LOSSES[formula.name](inputs, **formula.hyper)
    found = pairs_of(inputs)
    values = [formula.value(p) for p in found]
    assert out.values.tolist() == pytest.approx(values, rel=1e-11)
    assert out.loss.item() == pytest.approx(sum(values) / 3, rel=1e-11)
    expected = [math.nan] * 6
    for (w, v), p in zip(pairs(inputs), found, strict=True):
        for sequence, length, slope in zip((w, v), (p.nw, p.nl), formula.slopes(p), strict=True):
            if length:
                expected[sequence] = slope / 3
    got = coefficients(out.loss, tokens, inputs)
    assert got == pytest.approx(expected, rel=1e-10, abs=1e-13, nan_ok=True)


def one_pair(dw: float, dl: float, dtype: torch.dtype = torch.float64) -> LossInputs:
    """Return two responses of one token with exactly these log-ratios."""
    inputs = make((0, 0), lengths=(1, 1), preferred=(True, False))
    tokens = torch.tensor([-2e4, -2e4], dtype=dtype)
    ratio = torch.tensor([dw, dl], dtype=torch.float64)
    return replace(inputs, token_logps=tokens, ref_logps=tokens.double() - ratio)


@pytest.mark.parametrize("name", AT_REFERENCE)
def test_at_the_reference(name: str) -> None:
    inputs = one_pair(0, 0)
    tokens = inputs.token_logps.requires_grad_()
    formula = next(f for f in FORMULAS if f.name == name)
    out = LOSSES[name](inputs, **formula.hyper)
    value, *slopes = AT_REFERENCE[name]
    assert out.loss.item() == pytest.approx(value, rel=1e-14)
    assert coefficients(out.loss, tokens, inputs) == pytest.approx(slopes, rel=1e-14, abs=1e-16)


EXTREME = [(1e4, 1e4), (1e4, -1e4), (-1e4, 1e4), (-1e4, -1e4), (0.0, 1e4), (-1e4, 0.0)]


@formulas
@pytest.mark.parametrize(("dw", "dl"), EXTREME)
def test_right_at_extreme_log_ratios(formula: Formula, dw: float, dl: float) -> None:
    """In fp32, with sums of log-probs so large that any error shows."""
    if formula.name == "discopop" and dw < dl:
        pytest.skip("the formula itself overflows there; see the next test")
    inputs = one_pair(dw, dl, torch.float32)
    tokens = inputs.token_logps.requires_grad_()
    out = LOSSES[formula.name](inputs, **formula.hyper)
    p = replace(pairs_of(inputs)[0], nw=1, nl=1)
    assert out.loss.item() == pytest.approx(formula.value(p), rel=1e-6, abs=1e-30)
    got = coefficients(out.loss, tokens, inputs)
    assert got == pytest.approx(formula.slopes(p), rel=1e-6, abs=1e-30)


def test_discopop_far_on_the_wrong_side() -> None:
    """g exp(-u) vanishes against the logistic part although exp(-u) overflows."""
    inputs = one_pair(-1e4, 1e4, torch.float32)
    tokens = inputs.token_logps.requires_grad_()
    out = LOSSES["discopop"](inputs, beta=B, tau=0.3)
    assert out.loss.item() == pytest.approx(2e4 * B, rel=1e-6)
    assert coefficients(out.loss, tokens, inputs) == pytest.approx([-B, B], rel=1e-6)


# AOT couples the pairs.


def test_aot() -> None:
    inputs = make()
    tokens = inputs.token_logps.requires_grad_()
    out = LOSSES["aot"](inputs, beta=B, label_smoothing=E)
    logps, found = sums(inputs.token_logps, inputs), pairs(inputs)
    reference = inputs.require("ref_logps").tolist()
    ours = sorted((logps[w] - logps[v], w, v) for w, v in found)
    theirs = sorted(reference[w] - reference[v] for w, v in found)
    margins = [B * (m[0] - r) for m, r in zip(ours, theirs, strict=True)]
    values = [(1 - E) * softplus(-u) + E * softplus(u) for u in margins]
    assert out.values.tolist() == pytest.approx(values, rel=1e-12)
    expected = [math.nan] * 6
    for (_, w, v), u in zip(ours, margins, strict=True):
        slope = B * (logistic(u) - (1 - E)) / 3
        expected[w], expected[v] = slope, -slope
    expected = [e if n else math.nan for e, n in zip(expected, inputs.lengths, strict=True)]
    got = coefficients(out.loss, tokens, inputs)
    assert got == pytest.approx(expected, rel=1e-11, nan_ok=True)


def test_aot_of_one_pair_is_dpo() -> None:
    inputs = make((0, 0), lengths=(3, 4), preferred=(True, False))
    one = LOSSES["aot"](inputs, beta=B).loss
    torch.testing.assert_close(one, LOSSES["sigmoid"](inputs, beta=B).loss)


def test_pessimism_over_the_batch() -> None:
    """The minimum is over models, for the whole batch: the nearest one in the mean."""
    changes = []
    for seed in range(6):
        inputs = make(seed=seed)
        found = pairs_of(inputs)
        each = [[(p.gaps[m] - p.u) ** 2 for p in found] for m in range(3)]
        out = LOSSES["rpo_pessimistic"](inputs, beta=B, minimum="batch")
        assert out.values.tolist() == pytest.approx(min(each, key=sum), rel=1e-12)
        of_pairs = LOSSES["rpo_pessimistic"](inputs, beta=B).loss
        assert out.loss >= of_pairs
        changes.append(out.loss > of_pairs)
    assert any(changes)
