"""Log-ratios of 32k-token sequences from bf16 hidden states, against float64.

Every token's log-probability is rounded once, to fp32, and the error of the log-ratio is the sum of
those roundings alone. For a policy near its reference the log-ratio is far smaller than the two
sums of which it is the difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rao_kernels import SequenceBatch, fused_loss
from rao_kernels.losses import LossInputs
from rao_kernels.losses._terms import log_ratios

from .. import seeds

LENGTH, SEQUENCES, D, V = 32_768, 2, 16, 64
FP32_ROUNDING = torch.finfo(torch.float32).eps / 2


@dataclass
class Case:
    """Hidden states in bf16 of a policy near its reference, and float64 results."""

    batch: SequenceBatch
    hidden: Tensor
    weight: Tensor
    reference: Tensor
    exact: Tensor
    roundings: Tensor


def exact_logps(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = hidden.double() @ weight.double().T
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.fixture(scope="module")
def case() -> Case:
    draw = seeds.generator()
    size = SEQUENCES * (LENGTH + 1)
    ids = torch.randint(V, (size,), generator=draw)
    edges = torch.arange(SEQUENCES + 1) * (LENGTH + 1)
    mask = torch.ones_like(ids)
    mask[edges[:-1]] = 0
    batch = SequenceBatch.from_packed(ids, mask, edges)
    weight = torch.randn(V, D, generator=draw).bfloat16()
    reference = torch.randn(size, D, generator=draw)
    nudge = torch.randn(size, D, generator=draw) * 1e-2
    hidden, base = (reference + nudge).bfloat16(), reference.bfloat16()
    rows = batch.response_rows
    policy = exact_logps(hidden[rows], weight, batch.response_targets)
    reference_logps = exact_logps(base[rows], weight, batch.response_targets)

    def total(values: Tensor) -> Tensor:
        return values.view(SEQUENCES, LENGTH).sum(1)

    # The reference per token, as a cache holds it: fp32.
    per_token = torch.zeros(size)
    per_token[rows] = reference_logps.float()
    roundings = (policy.abs() + reference_logps.abs()) * FP32_ROUNDING
    exact = total(policy - reference_logps)
    return Case(batch, hidden, weight, per_token, exact, total(roundings))


def scored(case: Case) -> LossInputs:
    """Return the inputs that a loss gets from the hidden states."""
    found: list[LossInputs] = []

    def keep(inputs: LossInputs) -> Tensor:
        found.append(inputs)
        return inputs.logps

    reference = {"ref_token_logps": case.reference}
    fused_loss(keep, case.hidden, case.weight, case.batch, inputs=reference)
    return found[0]


def test_log_ratio_of_32k_tokens(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = scored(case)
    policy, reference = inputs.token_logps.double(), inputs.require("ref_token_logps").double()
    assert inputs.token_logps.dtype == torch.float32
    tokens = (policy - reference).view(SEQUENCES, LENGTH)
    ratios = log_ratios(inputs)

    sums = torch.tensor([math.fsum(row) for row in tokens.tolist()], dtype=torch.float64)
    summation = (ratios - sums).abs()
    whole = (ratios - case.exact).abs()
    with capsys.disabled():
        print(
            f"\n  {LENGTH} tokens, log-ratios {case.exact.tolist()}: error {whole.tolist()}, of "
            f"summation {summation.tolist()}, tokens' roundings {case.roundings.tolist()}"
        )
    assert (summation < 1e-3 * case.roundings).all()
    assert (whole < case.roundings).all()


def test_what_it_would_be_without_care(case: Case) -> None:
    """The difference of two fp32 sums exceeds the bounds above."""
    inputs = scored(case)
    columns = (inputs.token_logps, inputs.require("ref_token_logps"))
    policy, reference = (column.view(SEQUENCES, LENGTH).cumsum(1)[:, -1] for column in columns)
    exact = log_ratios(inputs)
    naive = ((policy - reference).double() - exact).abs()
    assert (naive > 1e-3 * case.roundings).all()
    halved = (policy.bfloat16() - reference.bfloat16()).double()
    assert ((halved - exact).abs() > case.roundings).all()


def test_the_losses_keep_it(case: Case) -> None:
    """At a win probability of one half SPPO's value is the square of the log-ratio."""
    halves = torch.full((SEQUENCES,), 0.5)
    inputs = {"ref_token_logps": case.reference, "rewards": halves}
    out = fused_loss("sppo", case.hidden, case.weight, case.batch, inputs=inputs)
    roots = out.values.double().sqrt()
    tolerance = case.roundings + 2 * FP32_ROUNDING * roots
    assert ((roots - case.exact.abs()).abs() < tolerance).all()
