"""Alignment losses as pure functions of log-probabilities, one row of `LOSSES` each."""

from __future__ import annotations

from . import (
    grao,
    group,
    hyperparameters,
    pairwise,
    pointwise_pairs,
    policy_clipped,
    policy_weighted,
    rao,
    reference_free,
    regression,
    reward_pairs,
    sft,
    unpaired,
)
from ._inputs import LossInputs
from ._meanings import hyperparameter_types, meanings
from ._names import ALIASES
from ._spec import LossSpec, reduce_units
from ._table import CombinedLoss, Loss, LossTable
from .rao import fit_log_z0
from .reward_model import bradley_terry_loss

LOSSES = LossTable(
    (
        *rao.ROWS,
        *regression.ROWS,
        *pairwise.ROWS,
        *pointwise_pairs.ROWS,
        *reward_pairs.ROWS,
        *group.ROWS,
        *reference_free.ROWS,
        *unpaired.ROWS,
        *policy_clipped.ROWS,
        *policy_weighted.ROWS,
        *grao.ROWS,
        *sft.ROWS,
    )
)

__all__ = [
    "ALIASES",
    "LOSSES",
    "CombinedLoss",
    "Loss",
    "LossInputs",
    "LossSpec",
    "LossTable",
    "bradley_terry_loss",
    "fit_log_z0",
    "hyperparameter_types",
    "hyperparameters",
    "meanings",
    "reduce_units",
]
