"""`LossTable`, the table of losses, and `CombinedLoss`, weighted sums of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from ..types import LossOutput
from ._inputs import LossInputs
from ._names import ALIASES, advice, spelled
from ._spec import LossSpec, Unit

if TYPE_CHECKING:
    from .hyperparameters import LossKey


class LossTable(Mapping[str, LossSpec]):
    """Losses by name: by key, or by a name that papers and other libraries use (`ALIASES`).

    Iteration gives the keys alone. Case, hyphens and underscores make no difference:
    ``LOSSES["DPO"]`` is ``LOSSES["sigmoid"]``.
    """

    def __init__(self, rows: Iterable[LossSpec]) -> None:
        self._rows = {row.name: row for row in rows}

    def __getitem__(self, name: LossKey | str) -> LossSpec:
        return self._rows[_key(name)]

    def find(self, name: LossKey | str, argument: str = "loss") -> LossSpec:
        """Return the loss `name`.

        Args:
            name: a key or another name of `ALIASES`.
            argument: the argument that an error names.

        Raises:
            InputError: there is no such loss; the message suggests names.
        """
        if name not in self:
            known = f"one of {', '.join(self)}"
            raise InputError(argument, known, repr(name), advice(name, self))
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def combine(self, weights: Mapping[str, float], argument: str = "weights") -> CombinedLoss:
        """Return ``sum_k weights[k] * loss_k``, usable wherever a loss is.

        Args:
            weights: weight by name of a loss, finite and at least 0.
            argument: name of the weights in errors.

        Raises:
            InputError: `weights` is empty, has an unknown loss, a loss twice or an invalid weight.

        Example: ``LOSSES.combine({"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0})``.
        """
        if not weights:
            raise InputError(argument, "at least one loss", weights)
        for name, weight in weights.items():
            numeric = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not numeric or not 0 <= weight < math.inf:
                expected = f"a finite weight of at least 0 for {name!r}"
                raise InputError(argument, expected, repr(weight))
        parts = tuple((self.find(name, argument), float(w)) for name, w in weights.items())
        if len({spec.name for spec, _ in parts}) < len(parts):
            raise InputError(argument, "each loss once", list(weights))
        return CombinedLoss(parts)


@dataclass(frozen=True)
class CombinedLoss:
    """A weighted sum of losses, each a mean over its own units.

    A hyperparameter ``name`` goes to every part that has it, ``part.name`` to that part alone;
    others keep each part's own default. `values` of the result are the parts' weighted values
    concatenated, its metrics the parts' (the first part's, where two share a name) and
    ``loss/part`` of each.
    """

    parts: tuple[tuple[LossSpec, float], ...]

    @property
    def name(self) -> str:
        return " + ".join(f"{weight:g} {spec.name}" for spec, weight in self.parts)

    @property
    def unit(self) -> Unit:
        """Pairs where any part needs pairs, else the first part's unit."""
        units = [spec.unit for spec, _ in self.parts]
        return "pair" if "pair" in units else units[0]

    @property
    def needs(self) -> tuple[str, ...]:
        return _union(spec.needs for spec, _ in self.parts)

    @property
    def defaults(self) -> dict[str, Any]:
        """Hyperparameters on whose default all parts that have them agree."""
        found: dict[str, list[Any]] = {}
        for spec, _ in self.parts:
            for name, value in spec.defaults.items():
                found.setdefault(name, []).append(value)
        return {name: v[0] for name, v in found.items() if all(one == v[0] for one in v)}

    def __call__(
        self, inputs: LossInputs, *, normalizer: Tensor | float | None = None, **hyper: Any
    ) -> LossOutput:
        """Compute the loss; `normalizer` is None, or one number per part like `count_units`."""
        units = self._normalizers(normalizer)
        self._check_labels(inputs, hyper)
        outputs = [
            spec(inputs, normalizer=own, **bound)
            for (spec, bound), own in zip(self.bound_parts(hyper), units, strict=True)
        ]
        weighted = [(weight, out) for (_, weight), out in zip(self.parts, outputs, strict=True)]
        metrics: dict[str, Tensor] = {}
        for (spec, _), out in zip(self.parts, outputs, strict=True):
            metrics = {f"loss/{spec.name}": out.loss.detach(), **out.metrics, **metrics}
        return LossOutput(
            torch.stack([weight * out.loss for weight, out in weighted]).sum(),
            torch.cat([weight * out.values for weight, out in weighted]),
            metrics,
            tuple(outputs),
        )

    def _check_labels(self, inputs: LossInputs, hyper: Mapping[str, Any]) -> None:
        """Require `preferred` where a likelihood stands beside a loss of rewards.

        The likelihood is meant for the preferred responses; without `preferred` it would be trained
        on all of them.
        """
        rewarded = any("rewards" in need.split("|") for need in self.required_inputs(hyper))
        if rewarded and "preferred" in self.optional and inputs.preferred is None:
            expected = f"a tensor: `{self.name}` has rewards, and a part learns from preferred ones"
            fix = "To learn from every response, give ones."
            raise InputError("preferred", expected, None, fix)

    def bind(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """Return `hyper`, over the defaults that the parts agree on."""
        known = [
            key
            for spec, _ in self.parts
            for name in spec.defaults
            for key in (name, f"{spec.name}.{name}")
        ]
        given, hyper = hyper, {_dotted_key(name): value for name, value in hyper.items()}
        if len(hyper) < len(given):
            raise InputError("hyper", "each hyperparameter of a part once", list(given))
        for name in hyper:
            if name not in known:
                plain = ", ".join(dict.fromkeys(key for key in known if "." not in key))
                raise InputError(
                    name, f"a hyperparameter of `{self.name}` ({plain})", "an unknown name"
                )
        return {**self.defaults, **hyper}

    def bound_parts(self, hyper: Mapping[str, Any]) -> tuple[tuple[LossSpec, dict[str, Any]], ...]:
        """Return each part with all its hyperparameters.

        In rising priority: its defaults, those given by name, those given to this part.
        """
        given = self.bind(hyper)
        return tuple((spec, spec.bind(_own(spec, given))) for spec, _ in self.parts)

    def required_inputs(self, hyper: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the inputs that any part needs under these hyperparameters."""
        return _union(spec.required_inputs(bound) for spec, bound in self.bound_parts(hyper))

    @property
    def optional(self) -> tuple[str, ...]:
        """Further inputs that any part reads where they are given."""
        return _union(spec.optional for spec, _ in self.parts)

    def count_units(self, inputs: LossInputs) -> Tensor:
        """Return ``[parts]`` number of units of each."""
        return torch.stack([spec.count_units(inputs) for spec, _ in self.parts])

    def _normalizers(self, normalizer: Tensor | float | None) -> list[Tensor | None]:
        if normalizer is None:
            return [None] * len(self.parts)
        if not isinstance(normalizer, Tensor) or normalizer.shape != (len(self.parts),):
            expected = f"None, or a tensor of {len(self.parts)} numbers of units, one per loss"
            raise InputError("normalizer", expected, normalizer)
        return list(normalizer.unbind())


Loss = LossSpec | CombinedLoss


def _key(name: str) -> str:
    """Return the key that `name` stands for; `name` itself where it stands for none."""
    plain = spelled(name)
    return ALIASES.get(plain, plain)


def _dotted_key(name: str) -> str:
    """Return ``part.hyperparameter`` with the part's key; a plain name unchanged."""
    part, dot, hyper = name.rpartition(".")
    return f"{_key(part)}.{hyper}" if dot else name


def _own(spec: LossSpec, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of one part; those that name the part take precedence."""
    shared = {name: value for name, value in hyper.items() if name in spec.defaults}
    prefix = f"{spec.name}."
    named = {name: value for name, value in hyper.items() if name.startswith(prefix)}
    return shared | {name.removeprefix(prefix): value for name, value in named.items()}


def _union(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))
