"""Alignment losses as pure functions of token log-probabilities, one `LossSpec` in `LOSSES` each.

Modules and their losses, by the names of the papers; a key that differs follows in parentheses:

- rao.py: RAO.
- regression.py: DRO-V (dro_value), Reward partitioning (reward_partition), A*-PO (a2po), QRPO.
- group_regression.py: Kimi k1.5 (kimi), DGRO, AGRO, REBEL.
- dpo.py: DPO (sigmoid), cDPO, Robust DPO (robust), Length-normalised DPO (sigmoid_norm), DPO+NLL or
  Iterative RPO (dpo_nll), R-DPO, AOT.
- pairwise.py: IPO, RSO hinge (hinge), EXO-pair, DiscoPOP.
- pointwise_pairs.py: Cal-DPO, DPOP, DPO-Shift, APO-down, APO-zero, NCA-pair, BCO-pair, SPPO-hard.
- reward_pairs.py: Reward distillation (rpo_distill); Pessimistic distillation (rpo_pessimistic);
  Nemotron RPO, backward KL (rpo_bwd_kl); Nemotron RPO, forward KL (rpo_fwd_kl).
- group.py: InfoNCA, NCA, EXO.
- reference_free.py: SimPO, AlphaPO, CPO, SLiC-HF (slic), ORPO, TPO.
- unpaired.py: KTO; BCO; APO-zero, unpaired; AOT, unpaired; SPPO.
- policy_clipped.py: PPO, GRPO, Dr. GRPO, DAPO, BNPO, GSPO, LUSPO, RLOO.
- policy_weighted.py: GMPO, CISPO, SAPO, VESPO.
- grao.py: GRAO.
- sft.py: SFT, DFT.
- modifiers.py: options of pair losses: f-DPO, LD-DPO, WPO, label smoothing.
- reward_model.py: the Bradley-Terry loss of a reward model, which is not in the table.

A loss is a function that returns `Terms` (values and metrics) and a `LossSpec` in its module's
`ROWS`. What losses share is in `_terms.py`, `_policy.py` and `modifiers.py`; `LossInputs` has all
inputs. docs/losses.md lists the data, the paper and other names of each.
"""

from __future__ import annotations

from . import (
    dpo,
    grao,
    group,
    group_regression,
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
        *group_regression.ROWS,
        *dpo.ROWS,
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
