"""Alignment losses as pure functions of log-probabilities, one row of `LOSSES` each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from . import _terms, dpo, rao, reference_free
from ._inputs import LossInputs
from ._spec import LossSpec, reduce_units
from .reward_model import bradley_terry_loss

_REFERENCE = "ref_logps|ref_token_logps"
_PAIR = ("groups", "preferred")

_ROWS = (
    LossSpec(
        name="rao",
        unit="prompt",
        terms=rao.rao,
        weights=_terms.prompt_weights,
        needs=("rewards", _REFERENCE, "prompt_logps", "ref_prompt_logps"),
        defaults={"beta": 0.1, "log_z0": 50.0, "prompt_term": "detached"},
        paper="Reward Alignment Optimization, Algorithm 1",
        waived={
            "prompt_logps": ("prompt_term", "none"),
            "ref_prompt_logps": ("prompt_term", "none"),
        },
    ),
    LossSpec(
        name="sigmoid",
        unit="pair",
        terms=dpo.sigmoid,
        weights=_terms.pair_weights,
        needs=(*_PAIR, _REFERENCE),
        defaults={"beta": 0.1},
        paper="Direct Preference Optimization, arXiv 2305.18290",
    ),
    LossSpec(
        name="ipo",
        unit="pair",
        terms=dpo.ipo,
        weights=_terms.pair_weights,
        needs=(*_PAIR, _REFERENCE),
        defaults={"tau": 0.1, "length_normalized": False},
        paper="Identity Preference Optimization, arXiv 2310.12036",
    ),
    LossSpec(
        name="simpo",
        unit="pair",
        terms=reference_free.simpo,
        weights=_terms.pair_weights,
        needs=_PAIR,
        defaults={"beta": 2.0, "gamma": 0.5},
        paper="Simple Preference Optimization, arXiv 2405.14734",
    ),
    LossSpec(
        name="sft",
        unit="token",
        terms=reference_free.sft,
        weights=_terms.preferred_token_weights,
        needs=(),
        defaults={},
        paper="maximum likelihood",
    ),
)

LOSSES: Mapping[str, LossSpec] = MappingProxyType({row.name: row for row in _ROWS})

__all__ = ["LOSSES", "LossInputs", "LossSpec", "bradley_terry_loss", "reduce_units"]
