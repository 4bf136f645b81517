"""A row of the table of losses, and the one reduction they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..types import LossOutput
from ._inputs import LossInputs
from ._terms import Terms, weighted_mean

Unit = Literal["prompt", "pair", "sequence", "token"]

# Needs that many rows share.
REFERENCE = "ref_logps|ref_token_logps"
PAIR = ("groups", "preferred")


@dataclass(frozen=True)
class LossSpec:
    """A loss by name: ``loss = sum(weights * values) / normalizer``.

    Attributes:
        name: key in the table.
        unit: what the loss is a mean over.
        terms: values and metrics from the inputs and the hyperparameters.
        weights: weight of each value; the sum is the number of units.
        needs: fields of `LossInputs` it reads; ``a|b`` is satisfied by either.
        optional: further fields it reads where they are given.
        defaults: every hyperparameter and its default.
        paper: where the formula comes from.
        waived: input -> (hyperparameter, value) pairs under any of which that input is not read.
        probabilities: inputs whose values are probabilities, from 0 to 1.
        notes: what public implementations do otherwise, and which option reproduces them.
    """

    name: str
    unit: Unit
    terms: Callable[..., Terms]
    weights: Callable[[LossInputs], Tensor]
    needs: tuple[str, ...]
    defaults: Mapping[str, Any]
    paper: str
    waived: Mapping[str, tuple[tuple[str, Any], ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    probabilities: tuple[str, ...] = ()

    def __call__(
        self, inputs: LossInputs, *, normalizer: Tensor | float | None = None, **hyper: Any
    ) -> LossOutput:
        """The loss of `inputs`; None as `normalizer` is the number of units in them."""
        bound = self.bind(hyper)
        self._check_inputs(inputs, bound)
        with torch.autocast(inputs.token_logps.device.type, enabled=False):
            terms = self.terms(inputs, **bound)
            loss = reduce_units(terms.values, self.weights(inputs), normalizer)
        metrics = {name: value.detach().to(inputs.dtype) for name, value in terms.metrics.items()}
        return LossOutput(loss.to(inputs.dtype), terms.values.to(inputs.dtype), metrics)

    def bind(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """All hyperparameters: the defaults, overridden by `hyper`."""
        known = ", ".join(self.defaults) or "none"
        for name in hyper:
            if name not in self.defaults:
                raise InputError(name, f"a hyperparameter of `{self.name}` ({known})", "another")
        return {**self.defaults, **hyper}

    def required_inputs(self, hyper: Mapping[str, Any]) -> tuple[str, ...]:
        """`needs` without what these hyperparameters make unnecessary."""
        bound = self.bind(hyper)

        def waived(need: str) -> bool:
            return any(bound[name] == value for name, value in self.waived.get(need, ()))

        return tuple(need for need in self.needs if not waived(need))

    def bound_parts(self, hyper: Mapping[str, Any]) -> tuple[tuple[LossSpec, dict[str, Any]], ...]:
        """The losses that are summed, each with all its hyperparameters: here this one alone."""
        return ((self, self.bind(hyper)),)

    def count_units(self, inputs: LossInputs) -> Tensor:
        """Number of units (fp64 scalar): what a caller sums over micro-batches and ranks."""
        return self.weights(inputs).sum()

    def _check_inputs(self, inputs: LossInputs, hyper: Mapping[str, Any]) -> None:
        for need in self.required_inputs(hyper):
            alternatives = need.split("|")
            if all(getattr(inputs, name) is None for name in alternatives):
                names = " or ".join(f"`{name}`" for name in alternatives)
                raise InputError(
                    alternatives[0],
                    f"a tensor: the loss `{self.name}` needs {names}",
                    None,
                    _FIXES.get(need, ""),
                )
        for name in self.probabilities:
            _check_probabilities(name, inputs, self.name)


# What to do about an input that is missing.
_FIXES = {
    "old_token_logps": "Give the log-probs under the policy that sampled the responses, or "
    "`on_policy=True` where that is the policy as it is now: ratios are 1 then."
}


def _check_probabilities(name: str, inputs: LossInputs, loss: str) -> None:
    """Checked on the CPU; reading another device's values would stop the host."""
    values: Tensor = getattr(inputs, name)
    if values.device.type != "cpu" or not values.numel():
        return
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        expected = f"probabilities from 0 to 1, which is what the loss `{loss}` reads them as"
        raise InputError(name, expected, f"{low:g} to {high:g}")


def reduce_units(values: Tensor, weights: Tensor, normalizer: Tensor | float | None) -> Tensor:
    """``sum(weights * values) / normalizer``, by default over the number of units."""
    if normalizer is None:
        return weighted_mean(values, weights)
    if isinstance(normalizer, Tensor) and normalizer.dim() != 0:
        raise InputError("normalizer", "one number", f"a tensor of shape {list(normalizer.shape)}")
    if (
        not isinstance(normalizer, Tensor) or normalizer.device.type == "cpu"
    ) and not normalizer > 0:
        raise InputError("normalizer", "a number above 0, or None", normalizer)
    return (weights * values).sum() / normalizer
