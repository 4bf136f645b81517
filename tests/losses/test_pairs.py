"""DPO, IPO and SimPO against per-token loops, their closed-form gradients and identities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES, LossInputs

from .cases import coefficients, make, pairs, ratios, sums


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@dataclass(frozen=True)
class Preset:
    """Value(margin) and slope(margin) of a loss, and the scale of its scores."""

    name: str
    hyper: dict[str, object]
    scale: float
    value: Callable[[float], float]
    slope: Callable[[float], float]
    per_length: bool = False
    reference: bool = True


PRESETS = [
    Preset(
        "sigmoid",
        {"beta": 0.4},
        0.4,
        value=lambda h: softplus(-0.4 * h),
        slope=lambda h: -0.4 * logistic(-0.4 * h),
    ),
    Preset(
        "ipo",
        {"tau": 0.7},
        0.7,
        value=lambda h: (h - 1 / 1.4) ** 2,
        slope=lambda h: 2 * (h - 1 / 1.4),
    ),
    Preset(
        "ipo",
        {"tau": 0.7, "length_normalized": True},
        0.7,
        value=lambda h: (h - 1 / 1.4) ** 2,
        slope=lambda h: 2 * (h - 1 / 1.4),
        per_length=True,
    ),
    Preset(
        "simpo",
        {"beta": 2.5, "gamma": 0.8},
        2.5,
        value=lambda h: softplus(0.8 - 2.5 * h),
        slope=lambda h: -2.5 * logistic(0.8 - 2.5 * h),
        per_length=True,
        reference=False,
    ),
]
every_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda p: f"{p.name}-{p.per_length}")


def scores(inputs: LossInputs, preset: Preset) -> list[float]:
    found = ratios(inputs) if preset.reference else sums(inputs.token_logps, inputs)
    if not preset.per_length:
        return found
    return [s / max(n, 1) for s, n in zip(found, inputs.lengths.tolist(), strict=True)]


@every_preset
@pytest.mark.parametrize("per_token", [False, True])
def test_value_gradient_and_metrics(preset: Preset, per_token: bool) -> None:
    inputs = make(per_token=per_token)
    tokens = inputs.token_logps.requires_grad_()
    out = LOSSES[preset.name](inputs, **preset.hyper)
    s, found = scores(inputs, preset), pairs(inputs)
    margins = [s[best] - s[worst] for best, worst in found]
    values = [preset.value(h) for h in margins]
    assert out.values.tolist() == pytest.approx(values, rel=1e-12)
    assert out.loss.item() == pytest.approx(sum(values) / 3, rel=1e-12)

    lengths = inputs.lengths.tolist()
    expected = [math.nan] * 6
    for (best, worst), h in zip(found, margins, strict=True):
        for sequence, sign in ((best, 1), (worst, -1)):
            if lengths[sequence]:
                share = lengths[sequence] if preset.per_length else 1
                expected[sequence] = sign * preset.slope(h) / 3 / share
    found_slopes = coefficients(out.loss, tokens, inputs)
    assert found_slopes == pytest.approx(expected, rel=1e-11, nan_ok=True)

    logps = sums(inputs.token_logps, inputs)
    assert {k: v.item() for k, v in out.metrics.items()} == pytest.approx(
        {
            "rewards/chosen": preset.scale * sum(s[best] for best, _ in found) / 3,
            "rewards/rejected": preset.scale * sum(s[worst] for _, worst in found) / 3,
            "rewards/margins": preset.scale * sum(margins) / 3,
            "rewards/accuracies": sum(h > 0 for h in margins) / 3,
            "logps/chosen": sum(logps[best] for best, _ in found) / 3,
            "logps/rejected": sum(logps[worst] for _, worst in found) / 3,
        },
        rel=1e-12,
    )


def swapped(inputs: LossInputs) -> LossInputs:
    assert inputs.preferred is not None
    return replace(inputs, preferred=~inputs.preferred)


@every_preset
def test_coefficients_of_a_pair_cancel(preset: Preset) -> None:
    inputs = make(lengths=(2,) * 6)
    tokens = inputs.token_logps.requires_grad_()
    c = coefficients(LOSSES[preset.name](inputs, **preset.hyper).loss, tokens, inputs)
    assert [c[best] + c[worst] for best, worst in pairs(inputs)] == pytest.approx(
        [0] * 3, abs=1e-15
    )


@every_preset
def test_a_constant_on_both_of_a_pair_changes_nothing(preset: Preset) -> None:
    inputs = make(lengths=(1,) * 6)
    shift = torch.tensor([5.0, 5.0, -2.0, -2.0, 7.0, 7.0], dtype=torch.float64)
    shifted = replace(inputs, token_logps=inputs.token_logps + shift)
    spec = LOSSES[preset.name]
    torch.testing.assert_close(
        spec(shifted, **preset.hyper).loss, spec(inputs, **preset.hyper).loss
    )


def test_swapping_a_pair_negates_the_margin() -> None:
    inputs = make()
    spec = LOSSES["sigmoid"]
    one, other = spec(inputs, beta=0.4), spec(swapped(inputs), beta=0.4)
    margin = one.metrics["rewards/margins"]
    torch.testing.assert_close(other.metrics["rewards/margins"], -margin)
    torch.testing.assert_close(one.loss - other.loss, -margin)


def test_at_the_reference() -> None:
    inputs = make()
    inputs = replace(inputs, ref_logps=inputs.logps)
    assert LOSSES["sigmoid"](inputs).loss.item() == pytest.approx(math.log(2), rel=1e-15)
    assert LOSSES["ipo"](inputs, tau=0.2).loss.item() == pytest.approx(1 / (4 * 0.04), rel=1e-14)


def test_simpo_on_single_tokens_is_dpo_without_a_reference() -> None:
    inputs = make(lengths=(1,) * 6)
    free = replace(inputs, ref_logps=torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(
        LOSSES["simpo"](inputs, beta=0.3, gamma=0.0).loss, LOSSES["sigmoid"](free, beta=0.3).loss
    )


def test_both_forms_of_ipo_agree_on_single_tokens() -> None:
    inputs = make(lengths=(1,) * 6)
    one = LOSSES["ipo"](inputs, length_normalized=True).loss
    torch.testing.assert_close(one, LOSSES["ipo"](inputs).loss)


@pytest.mark.parametrize(
    ("groups", "preferred", "match"),
    [
        ((0, 0, 1, 1, 1, 2), (1, 0, 1, 0, 0, 1), "group 1 with 3 sequences, 1 preferred"),
        ((0, 0, 1, 1, 2, 3), (1, 0, 1, 0, 1, 0), "group 2 with 1 sequences, 1 preferred"),
        ((0, 0, 1, 1, 2, 2), (1, 0, 1, 1, 1, 0), "group 1 with 2 sequences, 2 preferred"),
        ((0, 0, 1, 1, 2, 2), (0, 0, 1, 0, 1, 0), "group 0 with 2 sequences, 0 preferred"),
        ((0, 0, 0, 0, 1, 1), (1, 0, 1, 0, 1, 0), "group 0 with 4 sequences, 2 preferred"),
    ],
)
@pytest.mark.parametrize("name", ["sigmoid", "ipo", "simpo"])
def test_what_is_no_pair_is_named(
    name: str, groups: tuple[int, ...], preferred: tuple[int, ...], match: str
) -> None:
    inputs = make(groups, preferred=tuple(map(bool, preferred)))
    with pytest.raises(InputError, match=match):
        LOSSES[name](inputs)


def test_an_odd_number_of_sequences_is_named() -> None:
    inputs = make((0, 0, 1), lengths=(2, 3, 1), preferred=(True, False, True))
    with pytest.raises(InputError, match="group 1 with 1 sequences"):
        LOSSES["sigmoid"](inputs)
