"""Inputs of losses, and the same log-ratios computed by loops over Python floats."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rao_kernels.losses import LossInputs
from rao_kernels.losses._inputs import FIELD_SHAPES

from .. import seeds

# Responses of several lengths, one of them empty.
LENGTHS = (5, 1, 7, 3, 0, 4)
PAIRED = (0, 0, 1, 1, 2, 2)
PREFERRED = (True, False, False, True, True, False)
GOLD = (False, True, False, False, True, False)
TRIPLES = (0, 0, 0, 1, 1, 1)
# Prompts with three, one and two responses, not next to each other.
GROUPED = (0, 1, 0, 2, 2, 0)


def make(
    groups: tuple[int, ...] | None = PAIRED,
    *,
    lengths: tuple[int, ...] = LENGTHS,
    preferred: tuple[bool, ...] | None = PREFERRED,
    dtype: torch.dtype = torch.float64,
    per_token: bool = False,
    scale: float = 1.0,
    seed: int = 0,
) -> LossInputs:
    """Draw random inputs; `scale` multiplies all log-probs; prompt values agree within a group."""
    generator = seeds.generator(seed)
    count = len(lengths)

    def logps(*shape: int) -> Tensor:
        draw = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return -3 * scale * draw

    tokens, reference = logps(sum(lengths)), logps(sum(lengths))
    prompt, ref_prompt = logps(count), logps(count)
    rewards = torch.randn(count, generator=generator, dtype=torch.float64)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    leaders = [groups.index(g) for g in groups] if groups else list(range(count))
    segments = torch.repeat_interleave(torch.tensor(lengths))
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, segments, reference)
    return LossInputs(
        token_logps=tokens.to(dtype),
        segments=segments,
        num_sequences=count,
        ref_token_logps=reference.to(dtype) if per_token else None,
        ref_logps=None if per_token else sums.to(dtype),
        prompt_logps=prompt[leaders].to(dtype),
        ref_prompt_logps=ref_prompt[leaders].to(dtype),
        rewards=rewards.to(dtype),
        groups=torch.tensor(groups) if groups else None,
        preferred=torch.tensor(preferred) if preferred else None,
        values=numbers(count),
        reward_ensemble=numbers(3, count),
        ref_rewards=numbers(4 * count),
        ref_reward_groups=torch.arange(count).repeat(4),
        token_entropy=numbers(sum(lengths)).abs(),
        token_log_sum_sq=-numbers(sum(lengths)).abs(),
        gold=torch.tensor(GOLD[:count]),
        old_token_logps=(tokens + numbers(sum(lengths)).double() / 4).to(dtype),
        returns=numbers(sum(lengths)),
        old_values=numbers(sum(lengths)),
        kl_logps=numbers(count),
        ref_kl_logps=numbers(count) - 1,
    )


def make_for(name: str, *, seed: int = 0, **options: Any) -> LossInputs:
    """Return `make` with the further inputs that the loss `name` needs."""
    if name == "tpo":
        return make(TRIPLES, seed=seed, **options)
    inputs = make(seed=seed, **options)
    if name == "sppo":
        assert inputs.rewards is not None
        return replace(inputs, rewards=inputs.rewards.sigmoid())
    if name != "ppo":
        return inputs
    generator = seeds.generator(seed)
    advantages = torch.randn(inputs.token_logps.shape, generator=generator, dtype=torch.float64)
    return replace(inputs, advantages=advantages.to(inputs.token_logps.dtype))


def sums(values: Tensor, inputs: LossInputs) -> list[float]:
    """Sum per sequence, token by token."""
    parts: list[list[float]] = [[] for _ in range(inputs.num_sequences)]
    for value, segment in zip(values.tolist(), inputs.segments.tolist(), strict=True):
        parts[segment].append(value)
    return [math.fsum(part) for part in parts]


def ratios(inputs: LossInputs) -> list[float]:
    """Return D per sequence."""
    if inputs.ref_token_logps is not None:
        return sums(inputs.token_logps - inputs.ref_token_logps, inputs)
    assert inputs.ref_logps is not None
    pairs = zip(sums(inputs.token_logps, inputs), inputs.ref_logps.tolist(), strict=True)
    return [a - b for a, b in pairs]


def prompt_ratios(inputs: LossInputs) -> list[float]:
    """Return DX per sequence."""
    assert inputs.prompt_logps is not None
    assert inputs.ref_prompt_logps is not None
    return (inputs.prompt_logps - inputs.ref_prompt_logps).tolist()


def pairs(inputs: LossInputs) -> list[tuple[int, int]]:
    """Return the (chosen, rejected) sequence of each group."""
    assert inputs.groups is not None
    assert inputs.preferred is not None
    groups, preferred = inputs.groups.tolist(), inputs.preferred.tolist()
    found = []
    for group in sorted(set(groups)):
        members = [i for i, g in enumerate(groups) if g == group]
        found.append(tuple(sorted(members, key=lambda i: not preferred[i])))
    return [(a, b) for a, b in found]


def permuted(inputs: LossInputs, order: list[int]) -> LossInputs:
    """Return the same sequences in another order."""
    where = [torch.nonzero(inputs.segments == s)[:, 0] for s in order]
    rows = torch.cat(where)
    changes = selected(inputs, torch.tensor(order), rows)
    segments = torch.repeat_interleave(torch.tensor([len(w) for w in where]))
    return replace(inputs, segments=segments, **changes)


def selected(inputs: LossInputs, sequences: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """Return the fields of `inputs` for these sequences and their tokens."""
    found: dict[str, Tensor] = {}
    for name, shapes in FIELD_SHAPES.items():
        value = getattr(inputs, name)
        if value is None or shapes == ("K",) or name == "segments":
            continue
        if value.shape[-1] == inputs.num_sequences and shapes[0] != "N":
            found[name] = value[..., sequences]
        else:
            found[name] = value[rows]
    return found


def coefficients(loss: Tensor, tokens: Tensor, inputs: LossInputs) -> list[float]:
    """Return dL/dlogp of each sequence, which its tokens share; NaN for an empty one."""
    (grad,) = torch.autograd.grad(loss, tokens)
    found = [math.nan] * inputs.num_sequences
    for value, segment in zip(grad.tolist(), inputs.segments.tolist(), strict=True):
        assert math.isnan(found[segment]) or found[segment] == value
        found[segment] = value
    return found
