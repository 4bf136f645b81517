"""What each hyperparameter of a loss means, collected from where it is documented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import getdoc
from textwrap import dedent

from ._policy import ClipOptions, PolicyOptions, StdOptions
from ._spec import LossSpec
from .modifiers import PairOptions, ScoreOptions

# Hyperparameters that mean the same in every loss that does not say otherwise in its `Args`.
COMMON = {
    "beta": "strength of the pull to the reference: the implicit reward of a response is beta "
    "times its log-ratio. A smaller one lets the policy move further for the same rewards.",
    "tau": "strength of the pull to the reference, in reward per nat, as beta of other losses.",
    "eta": "scale of the rewards, or of win probabilities, against log-ratios: 1 / beta.",
    "label_smoothing": "share of the labels that is taken to be flipped, from 0 to 1; 0 is off.",
    "length_normalized": "whether a response's log-probability is its mean over tokens instead of "
    "the sum.",
    "sft_weight": "weight of the negative log-likelihood that is added, 0 or more; 0 is off.",
    "gamma": "margin by which the chosen response's score should lead, in units of the score.",
}
_OPTIONS = (PairOptions, ScoreOptions, ClipOptions, StdOptions, PolicyOptions)
_ENTRY = re.compile(r"^(\w+(?:, \w+)*): (.+(?:\n +.+)*)", re.MULTILINE)


def meanings(spec: LossSpec) -> dict[str, str]:
    """Hyperparameter -> its meaning: of the loss's own docstring, its options' or `COMMON`."""
    shared = {name: text for options in _OPTIONS for name, text in _entries(getdoc(options) or "")}
    _, _, own = (getdoc(spec.terms) or "").partition("Args:\n")
    known = COMMON | shared | dict(_entries(dedent(own)))
    return {name: known[name] for name in spec.defaults}


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """(name, meaning) of each ``name: meaning`` or ``name, name: meaning`` that begins a line;
    indented lines continue the one before."""
    for match in _ENTRY.finditer(text):
        for name in match[1].split(", "):
            yield name, " ".join(match[2].split())
