"""SFT and the loss of a reward model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES, bradley_terry_loss

from .cases import make


def test_sft_is_a_mean_over_tokens() -> None:
    inputs = make(preferred=None)
    tokens = inputs.token_logps.requires_grad_()
    out = LOSSES["sft"](inputs)
    assert out.loss.item() == pytest.approx(-sum(tokens.tolist()) / 20, rel=1e-14)
    assert out.metrics["nll_loss"].item() == pytest.approx(out.loss.item())
    (grad,) = torch.autograd.grad(out.loss, tokens)
    assert grad.tolist() == pytest.approx([-1 / 20] * 20)


def test_sft_takes_preferred_rows() -> None:
    inputs = make()
    assert inputs.preferred is not None
    tokens = inputs.token_logps.requires_grad_()
    out = LOSSES["sft"](inputs)
    kept = inputs.preferred[inputs.segments].tolist()
    values = [v for v, k in zip(tokens.tolist(), kept, strict=True) if k]
    assert out.loss.item() == pytest.approx(-sum(values) / len(values), rel=1e-14)
    (grad,) = torch.autograd.grad(out.loss, tokens)
    assert grad.tolist() == pytest.approx([-k / len(values) for k in kept])


def test_sft_without_a_token_is_zero() -> None:
    inputs = make((0, 1), lengths=(0, 0), preferred=None)
    out = LOSSES["sft"](inputs)
    assert out.loss == 0
    assert out.metrics["nll_loss"] == 0


def test_bradley_terry_closed_form() -> None:
    w = torch.tensor([1.5, -0.3, 2.0], dtype=torch.float64, requires_grad=True)
    l = torch.tensor([0.2, 0.4, 2.0], dtype=torch.float64, requires_grad=True)  # noqa: E741
    margin = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    out = bradley_terry_loss(w, l, margin=margin, center=0.01)
    values, dw, dl = [], [], []
    for a, b, m in zip(w.tolist(), l.tolist(), margin.tolist(), strict=True):
        values.append(math.log1p(math.exp(-(a - b - m))) + 0.01 * (a + b) ** 2)
        pull = 1 / (1 + math.exp(a - b - m))
        dw.append((-pull + 0.02 * (a + b)) / 3)
        dl.append((pull + 0.02 * (a + b)) / 3)
    assert out.values.tolist() == pytest.approx(values, rel=1e-13)
    assert out.loss.item() == pytest.approx(sum(values) / 3, rel=1e-13)
    found = torch.autograd.grad(out.loss, [w, l])
    assert found[0].tolist() == pytest.approx(dw, rel=1e-12)
    assert found[1].tolist() == pytest.approx(dl, rel=1e-12)
    assert out.metrics["rewards/accuracies"].item() == pytest.approx(1 / 3)
    assert out.metrics["rewards/margins"].item() == pytest.approx((w - l).mean().item())


def test_bradley_terry_gradcheck_and_shift() -> None:
    w, l = torch.randn(2, 4, dtype=torch.float64)  # noqa: E741
    w.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bradley_terry_loss(x, l, margin=0.3).loss, w)
    shifted = bradley_terry_loss(w + 100, l + 100).loss
    torch.testing.assert_close(shifted, bradley_terry_loss(w, l).loss)
    assert bradley_terry_loss(w + 100, l + 100, center=0.01).loss > shifted


def test_bradley_terry_dtypes_and_extremes() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        w = torch.tensor([1e4, -1e4], dtype=dtype, requires_grad=True)
        out = bradley_terry_loss(w, -w.detach())
        assert out.loss.dtype == torch.float32
        assert out.loss.isfinite()
        (grad,) = torch.autograd.grad(out.loss, w)
        assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("chosen", "rejected", "margin", "match"),
    [
        (torch.zeros(3), torch.zeros(4), None, "chosen"),
        (torch.zeros(3, 1), torch.zeros(3, 1), None, "chosen"),
        (torch.zeros(0), torch.zeros(0), None, "chosen"),
        (torch.zeros(3), torch.zeros(3), torch.zeros(2), "margin"),
    ],
)
def test_bradley_terry_wrong_inputs(
    chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor | None, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        bradley_terry_loss(chosen, rejected, margin=margin)


def test_preferred_may_be_numbers() -> None:
    inputs = make()
    assert inputs.preferred is not None
    numbers = replace(inputs, preferred=inputs.preferred.long())
    assert torch.equal(LOSSES["sigmoid"](numbers).loss, LOSSES["sigmoid"](inputs).loss)
    assert torch.equal(LOSSES["sft"](numbers).loss, LOSSES["sft"](inputs).loss)
