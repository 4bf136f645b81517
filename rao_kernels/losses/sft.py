"""Maximum likelihood, of the preferred responses where `preferred` is given.

SFT, the negative log-likelihood (`sft`), and DFT (`dft`).

Legend: l_t log-probability of token t, sg stop-gradient, N response tokens.
"""

from __future__ import annotations

from torch import Tensor

from ._inputs import LossInputs
from ._spec import LossSpec
from ._terms import Terms, preferred_token_weights, weighted_mean


def sft(inputs: LossInputs) -> Terms:
    """SFT: ``-l_t``, the negative log-likelihood, mean over tokens.

    Returns:
        Values ``[N]``, with the metric `nll_loss`.
    """
    values = -inputs.token_logps.double()
    return Terms(values, _metrics(inputs, values))


def dft(inputs: LossInputs) -> Terms:
    """DFT: ``-sg(exp(l_t)) l_t``, mean over tokens.

    Wu et al. 2025, arXiv 2508.05629.

    Returns:
        Values ``[N]``, with the metric `nll_loss`.
    """
    logps = inputs.token_logps.double()
    return Terms(-logps.detach().exp() * logps, _metrics(inputs, -logps))


def _metrics(inputs: LossInputs, nll: Tensor) -> dict[str, Tensor]:
    return {"nll_loss": weighted_mean(nll.detach(), preferred_token_weights(inputs))}


ROWS: tuple[LossSpec, ...] = (
    LossSpec(
        name="sft",
        title="SFT",
        unit="token",
        terms=sft,
        weights=preferred_token_weights,
        needs=(),
        optional=("preferred",),
        defaults={},
        paper="maximum likelihood",
    ),
    LossSpec(
        name="dft",
        title="DFT",
        unit="token",
        terms=dft,
        weights=preferred_token_weights,
        needs=(),
        optional=("preferred",),
        defaults={},
        paper=(
            "Wu et al. 2025, On the Generalization of SFT: A Reinforcement Learning Perspective "
            "with Reward Rectification (Dynamic Fine-Tuning), arXiv 2508.05629"
        ),
    ),
)
