"""DFT against a loop. SFT is tested in test_other.py."""

from __future__ import annotations

import math

import pytest
import torch

from rao_kernels.losses import LOSSES

from .cases import make


@pytest.mark.parametrize("labelled", [True, False])
def test_dft(labelled: bool) -> None:
    """Each token's NLL is weighted by its probability, a constant."""
    inputs = make() if labelled else make(preferred=None)
    tokens = inputs.token_logps.requires_grad_()
    out = LOSSES["dft"](inputs)
    kept = [True] * 20
    if inputs.preferred is not None:
        kept = inputs.preferred[inputs.segments].tolist()
    count = sum(kept)
    logps = [x for x, k in zip(tokens.tolist(), kept, strict=True) if k]
    expected = -math.fsum(math.exp(x) * x for x in logps) / count
    assert out.loss.item() == pytest.approx(expected, rel=1e-13)
    assert out.metrics["nll_loss"].item() == pytest.approx(-math.fsum(logps) / count)
    (grad,) = torch.autograd.grad(out.loss, tokens)
    slopes = [-math.exp(x) * k / count for x, k in zip(tokens.tolist(), kept, strict=True)]
    assert grad.tolist() == pytest.approx(slopes, rel=1e-12)


def test_dft_of_certain_tokens_is_sft() -> None:
    inputs = make(scale=1e-12)
    torch.testing.assert_close(LOSSES["dft"](inputs).loss, LOSSES["sft"](inputs).loss)


def test_dft_of_impossible_tokens_has_no_gradient() -> None:
    inputs = make(dtype=torch.float32, scale=1e4)
    tokens = inputs.token_logps.requires_grad_()
    (grad,) = torch.autograd.grad(LOSSES["dft"](inputs).loss, tokens)
    assert grad.isfinite().all()
    assert grad[tokens < -1e3].abs().max() == 0
