"""Maximum likelihood."""

from __future__ import annotations

from ._inputs import LossInputs
from ._spec import LossSpec
from ._terms import Terms, preferred_token_weights, weighted_mean


def sft(inputs: LossInputs) -> Terms:
    """Cross-entropy per token, of the preferred responses where `preferred` is given."""
    values = -inputs.token_logps.double()
    return Terms(values, {"nll_loss": weighted_mean(values, preferred_token_weights(inputs))})


ROWS: tuple[LossSpec, ...] = (
    LossSpec(
        name="sft",
        unit="token",
        terms=sft,
        weights=preferred_token_weights,
        needs=(),
        defaults={},
        paper="maximum likelihood",
    ),
)
