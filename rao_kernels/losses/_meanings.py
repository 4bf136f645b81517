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

_OPTIONS = (PairOptions, ScoreOptions, ClipOptions, StdOptions, PolicyOptions)
_ENTRY = re.compile(r"^(\w+): (.+(?:\n +.+)*)", re.MULTILINE)


def meanings(spec: LossSpec) -> dict[str, str]:
    """Return the meaning of each hyperparameter, by name.

    Read from the `Args` of the loss's function, else from the docstrings of its options.
    """
    shared = {name: text for options in _OPTIONS for name, text in _entries(getdoc(options) or "")}
    _, _, own = (getdoc(spec.terms) or "").partition("Args:\n")
    known = shared | dict(_entries(dedent(own.partition("\n\n")[0])))
    return {name: known[name] for name in spec.defaults}


def hyperparameter_types(spec: LossSpec) -> dict[str, Any]:
    """Return the type of each hyperparameter, by name, from the loss's function signatures."""
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

    Indented lines continue the one before.
    """
    for match in _ENTRY.finditer(text):
        yield match[1], " ".join(match[2].split())
