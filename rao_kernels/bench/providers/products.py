"""The baseline: the bare GEMMs that every dense method needs, through torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cases import BOTH, FORWARD, OP
from ..problems import Problem
from ._interface import Call, Outcome, Provider

AS_CALLED = "bare GEMMs"


@dataclass(frozen=True)
class Operands:
    """hidden ``[N, D]`` of the rows with a gradient, weight ``[V, D]``, dz ``[N, V]``; prompt: rows
    that are only scored."""

    hidden: Tensor
    weight: Tensor
    dz: Tensor
    prompt: Tensor | None


def _operands(problem: Problem) -> Operands:
    hidden, prompt = problem.hidden, None
    if problem.task != OP:
        batch, flat = problem.batch, hidden.flatten(0, 1)
        hidden = flat[batch.response_rows]
        if problem.task == "rao" and len(batch.prompt_rows):
            prompt = flat[batch.prompt_rows]
    weight = problem.weight
    # Random, because GPUs multiply a constant faster: fewer bits change, and the clock is higher.
    generator = torch.Generator(weight.device).manual_seed(0)
    dz = weight.new_empty(len(hidden), len(weight)).normal_(0.0, 1e-3, generator=generator)
    return Operands(hidden, weight, dz, prompt)


def as_called(problem: Problem, direction: str) -> Call:
    """Return the GEMMs with newly allocated results, as in most code."""
    it = _operands(problem)

    def run() -> Outcome:
        if it.prompt is not None:
            it.prompt @ it.weight.T
        logits = it.hidden @ it.weight.T
        if direction == FORWARD:
            return Outcome(logits)
        dhidden = it.dz @ it.weight
        return Outcome(logits, dhidden, it.dz.T @ it.hidden if direction == BOTH else None)

    return run


def _into_place(problem: Problem, direction: str) -> Call:
    """Return the GEMMs with results written into memory that exists already."""
    it = _operands(problem)
    logits = torch.empty_like(it.dz)
    dhidden = torch.empty_like(it.hidden) if direction != FORWARD else None
    dweight = torch.empty_like(it.weight) if direction == BOTH else None
    prompt = None if it.prompt is None else logits.new_empty(len(it.prompt), len(it.weight))

    def run() -> Outcome:
        if it.prompt is not None:
            torch.mm(it.prompt, it.weight.T, out=prompt)
        torch.mm(it.hidden, it.weight.T, out=logits)
        if dhidden is not None:
            torch.mm(it.dz, it.weight, out=dhidden)
        if dweight is not None:
            torch.mm(it.dz.T, it.hidden, out=dweight)
        return Outcome(logits, dhidden, dweight)

    return run


def providers(device: torch.device) -> list[Provider]:
    return [
        Provider(AS_CALLED, as_called, is_baseline=True),
        Provider("bare GEMMs, out= given", _into_place, is_baseline=True),
    ]
