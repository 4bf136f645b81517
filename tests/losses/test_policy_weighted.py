"""GMPO, CISPO, SAPO and VESPO against per-token loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES

from .policy_loops import cases, check, gradient, responses, standardized


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
    """The weight is clipped at 1 + clip_high, not at clip_high, and has no gradient."""
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
    found = gradient("cispo", on_policy, clip_low=0.2, clip_high=0.2, on_policy=True)[1]
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


def test_cispo_has_ppos_gradient_inside_the_range() -> None:
    inputs = cases()
    wide = {"clip_low": 0.99, "clip_high": 50.0}
    assert gradient("cispo", inputs, **wide)[1] == pytest.approx(
        gradient("dapo", inputs, **wide)[1]
    )
