"""Every loss of the table on hidden states, against the same loss through full logits.

A new loss is covered without a change here: its inputs follow from its `needs`.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from rao_kernels import SequenceBatch, fused_loss
from rao_kernels.losses import LOSSES, Loss, LossInputs
from rao_kernels.losses._inputs import FIELD_SHAPES

from .. import seeds

V, D = 31, 6
PROMPTS = [[1, 4, 5, 6], [1, 7], [1, 8, 9]]
RESPONSES = [[10, 11], [12, 13, 14], [15], [], [16, 17, 18, 19], [20, 21]]
# Prompts with three, one and two responses; pairs; gold, preferred and neither.
RAGGED = ((0, 1, 0, 2, 2, 0), (True, False, False, True, False, False))
PAIRS = ((1, 0, 1, 2, 2, 0), (True, False, False, False, True, True))
TRIPLES = ((0, 0, 0, 1, 1, 1), (False, True, False, True, False, False))
GOLD = (True, False, False, False, True, True)
TRIPLE_GOLD = (True, False, False, False, False, True)

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("sigmoid", {"ld_alpha": 0.5, "wpo": True, "f_divergence": "js", "label_smoothing": 0.1}),
    ("apo_zero", {"ld_alpha": 0.5, "wpo": "clamped"}),
    ("ipo", {"length_normalized": True}),
    ("rao", {"prompt_term": "grad"}),
    ("rao", {"prompt_term": "none", "log_z0": "auto"}),
]
PRESETS = [(name, {}) for name in sorted(LOSSES)] + OPTIONS
presets = pytest.mark.parametrize(
    ("name", "hyper"), PRESETS, ids=[f"{n}-{'-'.join(h)}" for n, h in PRESETS]
)


def layout_of(spec: Loss) -> tuple[tuple[int, ...], tuple[bool, ...], tuple[bool, ...]]:
    if "gold" in spec.needs and "preferred" in spec.needs:
        return (*TRIPLES, TRIPLE_GOLD)
    return (*(PAIRS if spec.unit == "pair" else RAGGED), GOLD)


def batch_of(groups: tuple[int, ...], packed: bool) -> SequenceBatch:
    tokens = [PROMPTS[g] + r for g, r in zip(groups, RESPONSES, strict=True)]
    masks = [[0] * len(PROMPTS[g]) + [1] * len(r) for g, r in zip(groups, RESPONSES, strict=True)]
    numbers = torch.tensor(groups)
    if packed:
        edges = torch.tensor([0, *map(len, tokens)]).cumsum(0)
        ids, mask = (torch.tensor([*chain(*rows)]) for rows in (tokens, masks))
        return SequenceBatch.from_packed(ids, mask, edges, groups=numbers)
    width = max(map(len, tokens)) + 1
    ids, mask, attention = (torch.zeros(6, width, dtype=torch.int64) for _ in range(3))
    for row, (own, marked) in enumerate(zip(tokens, masks, strict=True)):
        start = width - len(own) if row % 2 else 0
        ids[row, start : start + len(own)] = torch.tensor(own)
        mask[row, start : start + len(own)] = torch.tensor(marked)
        attention[row, start : start + len(own)] = 1
    return SequenceBatch.from_padded(ids, mask, attention, groups=numbers)


def given(
    batch: SequenceBatch, preferred: tuple[bool, ...], gold: tuple[bool, ...], spec: Loss
) -> dict[str, Tensor | None]:
    """Return every input of a loss that the op does not compute; log-probs near the policy's."""
    generator = seeds.generator(3)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found: dict[str, Tensor | None] = {
        "preferred": torch.tensor(preferred),
        "gold": torch.tensor(gold),
        "ref_token_logps": numbers(*batch.token_shape) - 3,
        "old_token_logps": numbers(*batch.token_shape) / 5 - 4,
        "reward_ensemble": numbers(3, 6),
        "ref_rewards": numbers(9),
        "ref_reward_groups": torch.arange(3).repeat(3),
        "advantages": None,
    }
    if "advantages" in spec.needs:
        found["advantages"] = numbers(*batch.token_shape)
    for name, shapes in FIELD_SHAPES.items():
        if name in found or name in (
            "token_logps",
            "segments",
            "prompt_logps",
            "groups",
            "ref_logps",
            "token_entropy",
            "token_log_sum_sq",
        ):
            continue
        on_tokens = shapes == ("N",) or (name == "values" and "returns" in spec.needs)
        found[name] = numbers(*batch.token_shape) if on_tokens else numbers(6)
    if spec.name == "sppo":
        found["rewards"] = torch.linspace(0, 1, 6, dtype=torch.float64)
    return found


def dense_inputs(
    hidden: Tensor, weight: Tensor, batch: SequenceBatch, inputs: dict[str, Tensor | None]
) -> LossInputs:
    """Return the inputs that a trainer computes from the softmax over the whole vocabulary."""
    every = torch.log_softmax(hidden @ weight.T, dim=-1)
    logps = every.gather(-1, batch.logp_targets.clamp(min=0)[..., None])[..., 0]
    return batch.loss_inputs(
        logps,
        **inputs,
        token_entropy=-(every.exp() * every).sum(-1),
        token_log_sum_sq=(2 * every.detach()).logsumexp(-1),
    )


@presets
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_equals_the_loss_through_full_logits(
    name: str, hyper: dict[str, Any], packed: bool
) -> None:
    check(LOSSES[name], name, hyper, packed)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_several_losses_at_once(packed: bool) -> None:
    spec = LOSSES.combine({"sigmoid": 0.8, "rao": 0.2, "sft": 1.0})
    check(spec, spec, {"beta": 0.2, "log_z0": 1.0, "sigmoid.wpo": True}, packed)


@presets
def test_a_sum_of_one_loss_is_that_loss(name: str, hyper: dict[str, Any]) -> None:
    alone, found = (gradients_of(entry, name, hyper) for entry in (name, LOSSES.combine({name: 1})))
    torch.testing.assert_close(found, alone, rtol=0, atol=0)
    named = {f"{name}.{key}": value for key, value in hyper.items()}
    found = gradients_of(LOSSES.combine({name: 1}), name, named)
    torch.testing.assert_close(found, alone, rtol=0, atol=0)


def gradients_of(entry: str | Loss, name: str, hyper: dict[str, Any]) -> list[Tensor]:
    """Return loss and gradients on the inputs for the loss `name`."""
    groups, preferred, gold = layout_of(LOSSES[name])
    batch = batch_of(groups, packed=False)
    generator = seeds.generator(1)
    shapes = ((*batch.token_shape, D), (V, D))
    operands = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
    inputs = given(batch, preferred, gold, LOSSES[name])
    out = fused_loss(entry, *operands, batch, inputs=inputs, hyper=hyper)
    return [out.loss.detach(), *torch.autograd.grad(out.loss, operands)]


@pytest.mark.parametrize("key", ["prompt_term", "rao.prompt_term"])
def test_the_prompts_gradient_in_a_sum(key: str) -> None:
    """A part that gives prompt tokens a gradient does so in a sum too."""
    for entry, hyper in [("rao", {"prompt_term": "grad"}), ("both", {key: "grad"})]:
        loss = LOSSES.combine({"rao": 1, "sft": 1}) if entry == "both" else entry
        groups, preferred, gold = layout_of(LOSSES["rao"])
        batch = batch_of(groups, packed=False)
        hidden = torch.randn(*batch.token_shape, D, requires_grad=True)
        inputs = given(batch, preferred, gold, LOSSES["rao"])
        fused_loss(
            loss, hidden, torch.randn(V, D), batch, inputs=inputs, hyper=hyper
        ).loss.backward()
        assert hidden.grad is not None
        assert (hidden.grad.flatten(0, 1)[batch.prompt_rows].abs().amax(1) > 0).all()


def check(spec: Loss, entry: str | Loss, hyper: dict[str, Any], packed: bool) -> None:
    groups, preferred, gold = layout_of(spec)
    batch = batch_of(groups, packed)
    generator = seeds.generator(1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    hidden, weight = numbers(*batch.token_shape, D), numbers(V, D)
    inputs = given(batch, preferred, gold, spec)
    out = fused_loss(entry, hidden, weight, batch, inputs=inputs, hyper=hyper)
    exact = spec(dense_inputs(hidden, weight, batch, inputs), **hyper)
    torch.testing.assert_close(out.loss, exact.loss)
    torch.testing.assert_close(out.values, exact.values)
    torch.testing.assert_close(
        out.metrics, {key: exact.metrics[key] for key in out.metrics}, equal_nan=True
    )
    got = torch.autograd.grad(out.loss, [hidden, weight])
    torch.testing.assert_close(got, torch.autograd.grad(exact.loss, [hidden, weight]))
    assert got[0].isfinite().all() and got[0].abs().max() > 0
    scored = (
        batch.logp_targets != -100 if hyper.get("prompt_term") == "grad" else batch.logp_grad_mask
    )
    assert (got[0][~scored] == 0).all()
