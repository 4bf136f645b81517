"""Meanings and types of the hyperparameters of a loss, read from docstrings and signatures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from inspect import getdoc
from textwrap import dedent
from typing import Any, Unpack, get_args, get_origin, get_type_hints

from ._policy import ClipOptions, PolicyOptions, StdOptions
from ._spec import LossSpec
from .modifiers import PairOptions, ScoreOptions

# Hyperparameters with one meaning in every loss whose own `Args` do not document them.
COMMON = {
    "beta": "KL coefficient, in reward per nat: the implicit reward of a response is beta times "
    "its log-ratio to the reference. A smaller one lets the policy move further from the "
    "reference for the same rewards.",
    "tau": "KL coefficient, in reward per nat; other losses call it beta.",
    "eta": "scale of rewards, or of win probabilities, in nats per unit: 1 / beta.",
    "label_smoothing": "assumed share of flipped labels, from 0 to 1; 0 is off.",
    "length_normalized": "True takes the mean log-probability of a response's tokens, False the "
    "sum.",
    "sft_weight": "weight of the negative log-likelihood that is added, 0 or more; 0 is off.",
    "gamma": "target margin between the scores of chosen and rejected response, in units of the "
    "score.",
}
_OPTIONS = (PairOptions, ScoreOptions, ClipOptions, StdOptions, PolicyOptions)
_ENTRY = re.compile(r"^(\w+(?:, \w+)*): (.+(?:\n +.+)*)", re.MULTILINE)


def meanings(spec: LossSpec) -> dict[str, str]:
    """Return the meaning of each hyperparameter.

    Looked up in the `Args` of the loss's function, then in the docstrings of its options, then in
    `COMMON`.
    """
    shared = {name: text for options in _OPTIONS for name, text in _entries(getdoc(options) or "")}
    _, _, own = (getdoc(spec.terms) or "").partition("Args:\n")
    known = COMMON | shared | dict(_entries(dedent(own)))
    return {name: known[name] for name in spec.defaults}


def hyperparameter_types(spec: LossSpec) -> dict[str, Any]:
    """Return the type of each hyperparameter, from the signatures of the loss's function."""
    found: dict[str, Any] = {}
    function: Callable[..., Any] | None = spec.terms
    while function is not None:
        for name, hint in get_type_hints(function, function.__globals__).items():
            unpacked = get_origin(hint) is Unpack
            found |= get_type_hints(get_args(hint)[0]) if unpacked else {name: hint}
        function = getattr(function, "__wrapped__", None)
    return {name: found[name] for name in spec.defaults}


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Yield (name, meaning) of each ``name: meaning`` that begins a line.

    Indented lines continue the one before; ``a, b: meaning`` is one meaning for both names.
    """
    for match in _ENTRY.finditer(text):
        for name in match[1].split(", "):
            yield name, " ".join(match[2].split())
