"""Policy gradients by loops over Python floats, and inputs to test them on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from rao_kernels.losses import LOSSES, LossInputs

from .. import seeds
from .cases import GROUPED, make


def cases(**options: Any) -> LossInputs:
    """Return prompts with three, one and two responses, one of them empty."""
    return make(GROUPED, per_token=True, **options)


def gradient(name: str, inputs: LossInputs, **hyper: Any) -> tuple[float, list[float]]:
    tokens = inputs.token_logps.clone().requires_grad_()
    out = LOSSES[name](replace(inputs, token_logps=tokens), **hyper)
    (grad,) = torch.autograd.grad(out.loss, tokens)
    return out.loss.item(), grad.tolist()


@dataclass
class Response:
    """Tokens of a sequence: position in the batch, log-prob, log-ratio, reference less policy."""

    where: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)


def responses(inputs: LossInputs) -> list[Response]:
    found = [Response() for _ in range(inputs.num_sequences)]
    logps, old = inputs.token_logps.tolist(), inputs.token_logps.tolist()
    if inputs.old_token_logps is not None:
        old = inputs.old_token_logps.tolist()
    reference = logps if inputs.ref_token_logps is None else inputs.ref_token_logps.tolist()
    for t, s in enumerate(inputs.segments.tolist()):
        found[s].where.append(t)
        found[s].logps.append(logps[t])
        found[s].ratios.append(logps[t] - old[t])
        found[s].reference.append(reference[t] - logps[t])
    return found


def groups_of(inputs: LossInputs) -> Iterator[list[int]]:
    assert inputs.groups is not None
    groups = inputs.groups.tolist()
    for group in sorted(set(groups)):
        yield [s for s, g in enumerate(groups) if g == group]


def standardized(inputs: LossInputs, eps: float = 1e-4, population: bool = False) -> list[float]:
    assert inputs.rewards is not None
    r = inputs.rewards.tolist()
    found = [0.0] * len(r)
    for members in groups_of(inputs):
        mean = math.fsum(r[s] for s in members) / len(members)
        squares = math.fsum((r[s] - mean) ** 2 for s in members)
        freedom = len(members) - (0 if population else 1)
        std = math.sqrt(squares / freedom) if freedom else 0.0
        for s in members:
            found[s] = (r[s] - mean) / (std + eps)
    return found


def centred(inputs: LossInputs) -> list[float]:
    assert inputs.rewards is not None
    r = inputs.rewards.tolist()
    found = [0.0] * len(r)
    for members in groups_of(inputs):
        for s in members:
            found[s] = r[s] - math.fsum(r[i] for i in members) / len(members)
    return found


def left_out(rewards: list[float], inputs: LossInputs) -> list[float]:
    found = [0.0] * len(rewards)
    for members in groups_of(inputs):
        for s in members:
            others = [rewards[i] for i in members if i != s]
            found[s] = rewards[s] - math.fsum(others) / len(others) if others else 0.0
    return found


def clipped_loop(
    inputs: LossInputs,
    advantages: list[float],
    *,
    level: str,
    mean: str,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
    kl: float = 0.0,
    budget: float = 1.0,
) -> tuple[float, list[float]]:
    """Return loss and gradient of PPO's surrogate; `level`: token, mean or sum of log-ratios."""
    parts, gradient = [], [0.0] * inputs.token_logps.numel()
    for response, a in zip(responses(inputs), advantages, strict=True):
        n = len(response.where)
        share = {
            "sequence": 1 / (inputs.num_sequences * max(n, 1)),
            "token": 1 / inputs.token_logps.numel(),
            "sum": 1 / (inputs.num_sequences * budget),
        }[mean]
        for t, d, ref in zip(response.where, response.ratios, response.reference, strict=True):
            x = {"token": d, "mean": sum(response.ratios) / n, "sum": sum(response.ratios)}[level]
            rho = math.exp(x)
            term = -min(rho * a, min(max(rho, 1 - low), 1 + high) * a)
            active = not (a > 0 and rho > 1 + high) and not (a < 0 and rho < 1 - low)
            if dual is not None and a < 0 and rho > dual:
                term, active = -dual * a, False
            parts.append(share * (term + kl * (math.exp(ref) - ref - 1)))
            gradient[t] += share * kl * (1 - math.exp(ref))
            slope = -a * rho * share if active else 0.0
            for u in [t] if level == "token" else response.where:
                gradient[u] += slope / n if level == "mean" else slope
    return math.fsum(parts), gradient


LEVELS = {
    "grpo": {"level": "token", "mean": "sequence"},
    "dr_grpo": {"level": "token", "mean": "sum"},
    "dapo": {"level": "token", "mean": "token", "high": 0.28},
    "bnpo": {"level": "token", "mean": "token"},
    "gspo": {"level": "mean", "mean": "sequence", "low": 3e-4, "high": 4e-4},
    "luspo": {"level": "mean", "mean": "sum", "low": 2e-3, "high": 2.5e-3},
    "rloo": {"level": "sum", "mean": "sequence"},
}


def advantages_of(name: str, inputs: LossInputs) -> list[float]:
    if name == "dr_grpo":
        return centred(inputs)
    if name == "rloo":
        assert inputs.rewards is not None
        return left_out(inputs.rewards.tolist(), inputs)
    return standardized(inputs)


def check(found: tuple[float, list[float]], expected: tuple[float, list[float]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-12, abs=1e-14)
    assert found[1] == pytest.approx(expected[1], rel=1e-11, abs=1e-15)


def ppo_inputs() -> LossInputs:
    inputs = cases()
    draw = seeds.generator(4)
    numbers = [torch.randn(20, generator=draw, dtype=torch.float64) for _ in range(4)]
    return replace(
        inputs,
        advantages=numbers[0],
        returns=numbers[1],
        old_values=numbers[2],
        values=numbers[2] + numbers[3],
    )


GOLD = torch.tensor([False, True, True, False, False, False])


def grao_inputs(**options: Any) -> LossInputs:
    """Return two prompts with two samples and a gold answer each."""
    inputs = make((0, 1, 0, 1, 1, 0), lengths=(5, 2, 7, 3, 1, 4), per_token=True, **options)
    return replace(inputs, gold=GOLD)


def tiny(name: str) -> dict[str, float]:
    return {} if name in ("dr_grpo", "rloo") else {"eps": 1e-12}


def check_close(found: tuple[float, list[float]], expected: tuple[float, list[float]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-9, abs=1e-12)
    assert found[1] == pytest.approx(expected[1], rel=1e-9, abs=1e-12)


def extreme(difference: list[float], advantages: list[float]) -> LossInputs:
    tokens = torch.full((len(difference),), -2e4)
    return LossInputs(
        token_logps=tokens,
        segments=torch.arange(len(difference)),
        num_sequences=len(difference),
        old_token_logps=tokens - torch.tensor(difference),
        ref_token_logps=tokens - torch.tensor(difference),
        advantages=torch.tensor(advantages),
    )
