"""KTO, BCO, APO-zero, AOT and SPPO on single responses, against loops and their limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES, LossInputs

from .cases import coefficients, make, ratios

LENGTHS = (5, 1, 7, 3, 2, 4)


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def slope(x: float) -> float:
    return sigmoid(x) * sigmoid(-x)


def unpaired(**options: Any) -> LossInputs:
    """Return inputs without groups: each response is its own."""
    return make(None, lengths=LENGTHS, **options)


def found(name: str, inputs: LossInputs, **hyper: Any) -> tuple[list[float], list[float]]:
    tokens = inputs.token_logps.clone().requires_grad_()
    inputs = replace(inputs, token_logps=tokens)
    out = LOSSES[name](inputs, **hyper)
    assert out.loss.item() == pytest.approx(sum(out.values.tolist()) / len(out.values))
    return out.values.tolist(), coefficients(out.loss, tokens, inputs)


def labels(inputs: LossInputs) -> list[bool]:
    assert inputs.preferred is not None
    return inputs.preferred.tolist()


@pytest.mark.parametrize("drift", [1.0, -50.0])
def test_kto(drift: float) -> None:
    """z0 is the mean of the batch's mismatched pairs, at least 0, and a constant."""
    inputs, beta, wanted, unwanted = unpaired(), 0.3, 1.3, 0.7
    assert inputs.kl_logps is not None and inputs.ref_kl_logps is not None
    inputs = replace(inputs, ref_kl_logps=inputs.ref_kl_logps - drift)
    gaps = zip(inputs.kl_logps.tolist(), inputs.ref_kl_logps.tolist(), strict=True)
    z0 = max(0.0, math.fsum(a - b for a, b in gaps) / 6)
    assert (z0 > 0) == (drift > 0)
    values, slopes = [], []
    for d, good in zip(ratios(inputs), labels(inputs), strict=True):
        a = beta * (d - z0)
        values.append(wanted * sigmoid(-a) if good else unwanted * sigmoid(a))
        slopes.append((-wanted if good else unwanted) * beta * slope(a) / 6)
    hyper = {"beta": beta, "desirable_weight": wanted, "undesirable_weight": unwanted}
    result = found("kto", inputs, **hyper)
    assert result == (pytest.approx(values, rel=1e-12), pytest.approx(slopes, rel=1e-11))
    metrics = LOSSES["kto"](inputs, **hyper).metrics
    assert metrics["kl"].item() == pytest.approx(z0)
    good = [beta * d for d, g in zip(ratios(inputs), labels(inputs), strict=True) if g]
    assert metrics["rewards/chosen"].item() == pytest.approx(sum(good) / 3)


def test_kto_has_no_gradient_through_its_reference_point() -> None:
    inputs = unpaired()
    assert inputs.kl_logps is not None
    live = inputs.kl_logps.clone().requires_grad_()
    inputs.token_logps.requires_grad_()
    loss = LOSSES["kto"](replace(inputs, kl_logps=live)).loss
    assert torch.autograd.grad(loss, live, allow_unused=True) == (None,)


def test_kto_at_zero_is_apo_zero() -> None:
    inputs = unpaired()
    at_zero = replace(inputs, kl_logps=inputs.ref_kl_logps)
    hyper = {"beta": 0.3, "desirable_weight": 2.0}
    assert found("kto", at_zero, **hyper) == found("apo_zero_unpaired", inputs, **hyper)


def test_apo_zero() -> None:
    inputs, beta = unpaired(), 0.3
    values = [
        sigmoid(-beta * d if good else beta * d)
        for d, good in zip(ratios(inputs), labels(inputs), strict=True)
    ]
    assert found("apo_zero_unpaired", inputs, beta=beta)[0] == pytest.approx(values, rel=1e-12)
    at_reference = replace(inputs, ref_logps=inputs.logps)
    values, slopes = found("apo_zero_unpaired", at_reference, beta=beta)
    assert values == pytest.approx([0.5] * 6)
    signs = [-1 if good else 1 for good in labels(inputs)]
    assert slopes == pytest.approx([sign * beta / 4 / 6 for sign in signs])


@pytest.mark.parametrize("delta", [None, 0.7])
def test_bco(delta: float | None) -> None:
    inputs, beta = unpaired(), 0.3
    d = ratios(inputs)
    origin = beta * math.fsum(d) / 6 if delta is None else delta
    values, slopes = [], []
    for ratio, good in zip(d, labels(inputs), strict=True):
        a = beta * ratio - origin
        values.append(softplus(-a if good else a))
        slopes.append((-beta * sigmoid(-a) if good else beta * sigmoid(a)) / 6)
    result = found("bco", inputs, beta=beta, delta=delta)
    assert result == (pytest.approx(values, rel=1e-12), pytest.approx(slopes, rel=1e-11))
    running = LOSSES["bco"](inputs, beta=beta, delta=delta).metrics["bco/mean_reward"]
    assert running.item() == pytest.approx(beta * math.fsum(d) / 6)


def test_sppo() -> None:
    inputs, eta = unpaired(), 3.0
    assert inputs.rewards is not None
    wins = inputs.rewards.sigmoid()
    values, slopes = [], []
    for d, p in zip(ratios(inputs), wins.tolist(), strict=True):
        values.append((d - eta * (p - 0.5)) ** 2)
        slopes.append(2 * (d - eta * (p - 0.5)) / 6)
    result = found("sppo", replace(inputs, rewards=wins), eta=eta)
    assert result == (pytest.approx(values, rel=1e-12), pytest.approx(slopes, rel=1e-11))


def test_sppo_of_certain_wins_is_half_sppo_hard() -> None:
    inputs = make(lengths=LENGTHS)
    assert inputs.preferred is not None
    wins = replace(inputs, rewards=inputs.preferred.double())
    soft = LOSSES["sppo"](wins, eta=4.0).loss
    torch.testing.assert_close(soft, LOSSES["sppo_hard"](inputs, beta=0.25).loss / 2)


def aot_loop(inputs: LossInputs, beta: float) -> tuple[list[float], list[float]]:
    d, good = ratios(inputs), labels(inputs)
    best = sorted((i for i in range(6) if good[i]), key=lambda i: d[i])
    worst = sorted((i for i in range(6) if not good[i]), key=lambda i: d[i])
    values, slopes = [], [0.0] * 6
    for w, l in zip(best, worst, strict=True):  # noqa: E741
        u = beta * (d[w] - d[l])
        values.append(softplus(-u))
        slopes[w], slopes[l] = -beta * sigmoid(-u) / 3, beta * sigmoid(-u) / 3
    return values, slopes


@pytest.mark.parametrize("seed", range(3))
def test_aot_unpaired(seed: int) -> None:
    inputs = unpaired(seed=seed)
    values, slopes = aot_loop(inputs, 0.3)
    result = found("aot_unpaired", inputs, beta=0.3)
    assert result == (pytest.approx(values, rel=1e-12), pytest.approx(slopes, rel=1e-11))


def test_aot_of_one_of_each_is_dpo() -> None:
    inputs = make((0, 0), lengths=(3, 2), preferred=(False, True))
    torch.testing.assert_close(
        LOSSES["aot_unpaired"](inputs, beta=0.1).loss, LOSSES["sigmoid"](inputs, beta=0.1).loss
    )
    smooth = [LOSSES[n](inputs, beta=0.1, label_smoothing=0.2) for n in ("aot_unpaired", "sigmoid")]
    torch.testing.assert_close(smooth[0].loss, smooth[1].loss)


def test_aot_wants_as_many_of_each() -> None:
    inputs = unpaired()
    more = torch.tensor([True, True, True, True, False, False])
    with pytest.raises(InputError, match="`preferred`.*as many"):
        LOSSES["aot_unpaired"](replace(inputs, preferred=more))


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired", "bco"])
def test_batches_of_one_label(name: str) -> None:
    for label in (True, False):
        inputs = unpaired()
        same = replace(inputs, preferred=torch.full((6,), label))
        values, slopes = found(name, same)
        assert all(map(math.isfinite, values))
        assert all(c < 0 if label else c > 0 for c in slopes)
        metrics = LOSSES[name](same).metrics
        assert metrics["rewards/rejected" if label else "rewards/chosen"] == 0


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired", "bco"])
def test_swapping_labels_and_ratios(name: str) -> None:
    """With z0 or delta at 0: value(D, desirable) = value(-D, undesirable)."""
    inputs = unpaired()
    assert inputs.ref_logps is not None and inputs.preferred is not None
    inputs = replace(inputs, kl_logps=inputs.ref_kl_logps)
    hyper = {"delta": 0.0} if name == "bco" else {}
    mirrored = replace(
        inputs, ref_logps=2 * inputs.logps - inputs.ref_logps, preferred=~inputs.preferred
    )
    torch.testing.assert_close(
        LOSSES[name](mirrored, **hyper).values, LOSSES[name](inputs, **hyper).values
    )


def test_weights_must_be_positive() -> None:
    for name in ("desirable_weight", "undesirable_weight"):
        with pytest.raises(InputError, match=f"`{name}`"):
            LOSSES["kto"](unpaired(), **{name: 0.0})
