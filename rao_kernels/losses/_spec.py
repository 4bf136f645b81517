"""`LossSpec`, one loss of the table, and the reduction that all losses share."""

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

# Needs that many losses share.
REFERENCE = "ref_logps|ref_token_logps"
PAIR = ("groups", "preferred")


@dataclass(frozen=True)
class LossSpec:
    """A loss of the table: ``loss = sum(weights * values) / normalizer``.

    Attributes:
        name: key in the table.
        title: name in the literature, such as DPO.
        unit: the loss is a mean over these.
        terms: function of the inputs and the hyperparameters that returns values and metrics.
        weights: function that returns the weight of each value; their sum is the number of units.
        needs: fields of `LossInputs` it reads; ``a|b`` is satisfied by either.
        optional: further fields it reads where they are given.
        defaults: every hyperparameter and its default.
        paper: authors and year, title, arXiv id, equation of the formula.
        defaults_from: where the defaults come from; empty without hyperparameters.
        needed_unless: input -> (hyperparameter, value) pairs; under any of them it is not needed.
        probabilities: inputs whose values are probabilities, from 0 to 1.
        notes: differences in public implementations, and the options that reproduce them.
    """

    name: str
    title: str
    unit: Unit
    terms: Callable[..., Terms]
    weights: Callable[[LossInputs], Tensor]
    needs: tuple[str, ...]
    defaults: Mapping[str, Any]
    paper: str
    defaults_from: str = ""
    needed_unless: Mapping[str, tuple[tuple[str, Any], ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    probabilities: tuple[str, ...] = ()

    def __call__(
        self, inputs: LossInputs, *, normalizer: Tensor | float | None = None, **hyper: Any
    ) -> LossOutput:
        """Compute the loss of `inputs`.

        Args:
            inputs: log-probs and constants; those in `needs` must be given.
            normalizer: divides the weighted sum of values, a number above 0 or a scalar tensor;
                None: the number of units in `inputs`.
            hyper: hyperparameters, see `defaults`; `rao_kernels.losses.hyperparameters` has their
                types.

        Returns:
            `LossOutput` in fp64 for fp64 log-probs, else in fp32.

        Raises:
            InputError: a hyperparameter is unknown or invalid, or an input is missing or invalid.
        """
        bound = self.bind(hyper)
        self._check_inputs(inputs, bound)
        with torch.autocast(inputs.token_logps.device.type, enabled=False):
            terms = self.terms(inputs, **bound)
            loss = reduce_units(terms.values, self.weights(inputs), normalizer)
        metrics = {name: value.detach().to(inputs.dtype) for name, value in terms.metrics.items()}
        return LossOutput(loss.to(inputs.dtype), terms.values.to(inputs.dtype), metrics)

    def bind(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """Return all hyperparameters: the defaults, overridden by `hyper`."""
        known = ", ".join(self.defaults) or "none"
        for name in hyper:
            if name not in self.defaults:
                raise InputError(
                    name, f"a hyperparameter of `{self.name}` ({known})", "an unknown name"
                )
        return {**self.defaults, **hyper}

    def required_inputs(self, hyper: Mapping[str, Any]) -> tuple[str, ...]:
        """Return `needs` without those that are not read under these hyperparameters."""
        bound = self.bind(hyper)

        def skipped(need: str) -> bool:
            return any(bound[name] == value for name, value in self.needed_unless.get(need, ()))

        return tuple(need for need in self.needs if not skipped(need))

    def bound_parts(self, hyper: Mapping[str, Any]) -> tuple[tuple[LossSpec, dict[str, Any]], ...]:
        """Return the losses that are summed, each with its hyperparameters: this one alone."""
        return ((self, self.bind(hyper)),)

    def count_units(self, inputs: LossInputs) -> Tensor:
        """Return the number of units, an fp64 scalar that adds up over micro-batches and ranks."""
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


# Advice on a missing input.
_FIXES = {
    "old_token_logps": "Give the log-probs under the policy that sampled the responses, or "
    "`on_policy=True` if the current policy sampled them (all ratios are 1)."
}


def _check_probabilities(name: str, inputs: LossInputs, loss: str) -> None:
    """Check the range, on the CPU only: reading another device's values would synchronise."""
    values: Tensor = getattr(inputs, name)
    if values.device.type != "cpu" or not values.numel():
        return
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        expected = f"probabilities from 0 to 1, as the loss `{loss}` takes them"
        raise InputError(name, expected, f"{low:g} to {high:g}")


def reduce_units(values: Tensor, weights: Tensor, normalizer: Tensor | float | None) -> Tensor:
    """Return ``sum(weights * values) / normalizer``.

    Args:
        values, weights: of one shape; the weights sum to the number of units.
        normalizer: a number above 0 or a scalar tensor; None: the number of units.

    Raises:
        InputError: `normalizer` is none of these.
    """
    if normalizer is None:
        return weighted_mean(values, weights)
    if isinstance(normalizer, Tensor) and normalizer.dim() != 0:
        raise InputError("normalizer", "one number", f"a tensor of shape {list(normalizer.shape)}")
    if (
        not isinstance(normalizer, Tensor) or normalizer.device.type == "cpu"
    ) and not normalizer > 0:
        raise InputError("normalizer", "a number above 0, or None", normalizer)
    return (weights * values).sum() / normalizer
