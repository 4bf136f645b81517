"""The interface of a provider; most are made from one function of rows to log-probs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...losses import LOSSES
from ..cases import BOTH, FORWARD, OP
from ..problems import Problem


class Unsupported(Exception):
    """The provider does not do this; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """Results of a call. value: log-probs ``[N]`` or the loss; gradients: None where not asked
    for."""

    value: Tensor
    dhidden: Tensor | None = None
    dweight: Tensor | None = None


Call = Callable[[], Outcome]
Function = Callable[[Tensor, Tensor], Tensor]  # hidden, weight -> value


@dataclass(frozen=True)
class Provider:
    """An implementation. prepare(problem, direction): does the set-up, returns the call to measure.

    packages: distributions it needs. is_baseline: bare GEMMs, which have no errors.
    """

    name: str
    prepare: Callable[[Problem, str], Call]
    packages: tuple[str, ...] = ()
    is_baseline: bool = False
    is_ours: bool = False


@dataclass(frozen=True)
class LogProbs:
    """A function from rows to log-probs, for the op and for losses on top of it.

    run(hidden [N, D], weight [V, D], targets [N], softcap) -> ``[N]``. every_position: it is used
    on the logits of all positions, as a model returns them, not on selected rows.
    """

    run: Callable[[Tensor, Tensor, Tensor, float | None], Tensor]
    every_position: bool = False

    def prepare(self, problem: Problem, direction: str) -> Call:
        return differentiated(self.value_of(problem), problem, direction)

    def value_of(self, problem: Problem) -> Function:
        """Return the function of hidden and weight to the log-probs or the loss of the problem."""
        if problem.task == OP:
            return lambda hidden, weight: self.run(hidden, weight, problem.targets, problem.softcap)
        return self._loss_everywhere(problem) if self.every_position else self._loss(problem)

    def _loss(self, problem: Problem) -> Function:
        batch, wants_prompts = problem.batch, problem.task == "rao"

        def loss(hidden: Tensor, weight: Tensor) -> Tensor:
            flat, prompts = hidden.flatten(0, 1), None
            logps = self.run(flat[batch.response_rows], weight, batch.response_targets, None)
            if wants_prompts and len(batch.prompt_rows):
                with torch.no_grad():
                    rows, targets = batch.prompt_rows, batch.prompt_targets
                    prompts = self.run(flat[rows], weight, targets, None)
            elif wants_prompts:
                prompts = logps.new_empty(0)
            given = batch.row_loss_inputs(logps, prompts, **problem.loss_inputs)
            return LOSSES[problem.task](given, **problem.hyper).loss

        return loss

    def _loss_everywhere(self, problem: Problem) -> Function:
        batch = problem.batch
        assert problem.input_ids is not None
        following = problem.input_ids.roll(-1, dims=1)

        def loss(hidden: Tensor, weight: Tensor) -> Tensor:
            logps = self.run(hidden.flatten(0, 1), weight, following.flatten(), None)
            given = batch.loss_inputs(logps.view(following.shape), **problem.loss_inputs)
            return LOSSES[problem.task](given, **problem.hyper).loss

        return loss


def differentiated(function: Function, problem: Problem, direction: str) -> Call:
    """Return the call that computes the value and the gradients of the direction."""
    if direction == FORWARD:

        def forward() -> Outcome:
            with torch.no_grad():
                return Outcome(function(problem.hidden, problem.weight))

        return forward

    def both() -> Outcome:
        hidden = problem.hidden.detach().requires_grad_()
        weight = problem.weight.detach().requires_grad_(direction == BOTH)
        value = function(hidden, weight)
        upstream = None if problem.upstream is None else problem.upstream.to(value.dtype)
        inputs = [hidden, weight] if direction == BOTH else [hidden]
        return Outcome(value.detach(), *torch.autograd.grad(value, inputs, upstream))

    return both
