"""The Bradley-Terry loss of a reward model, on its scalar outputs.

Legend: P pairs of a chosen (w) and a rejected (l) response.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..types import LossOutput
from ._terms import logistic


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | float | None = None, center: float = 0.0
) -> LossOutput:
    """Compute ``-log sigmoid(r_w - r_l - margin) + center (r_w + r_l)^2``, mean over pairs.

    RAO, Eq. 2, with the margin of Llama 2 (Touvron et al. 2023, arXiv 2307.09288) and the centering
    of Eisenstein et al. 2023 (arXiv 2312.09244).

    Args:
        chosen, rejected: rewards ``[P]``, P >= 1.
        margin: target gap between the rewards, a number or ``[P]``; None for 0.
        center: weight of the pull of the rewards towards zero; the first term does not determine
            their level. TRL recommends 0.01.

    Returns:
        `LossOutput` with values ``[P]``, in fp64 for fp64 rewards, else in fp32.

    Raises:
        InputError: an argument has another shape than stated.
    """
    if chosen.dim() != 1 or chosen.shape != rejected.shape or chosen.numel() == 0:
        raise InputError(
            "chosen",
            "shape [P] with P >= 1, like `rejected`",
            f"{list(chosen.shape)} and {list(rejected.shape)}",
        )
    dtype = torch.promote_types(chosen.dtype, torch.float32)
    with torch.autocast(chosen.device.type, enabled=False):
        best, worst = chosen.double(), rejected.double()
        gap = best - worst
        target = _margin(margin, gap)
        values = logistic(gap - target) + center * (best + worst).square()
    metrics = {
        "rewards/chosen": best.mean(),
        "rewards/rejected": worst.mean(),
        "rewards/margins": gap.mean(),
        "rewards/accuracies": (gap > 0).double().mean(),
    }
    return LossOutput(
        values.mean().to(dtype),
        values.to(dtype),
        {name: value.detach().to(dtype) for name, value in metrics.items()},
    )


def _margin(margin: Tensor | float | None, gap: Tensor) -> Tensor | float:
    if margin is None:
        return 0.0
    if isinstance(margin, Tensor):
        if margin.shape != gap.shape:
            raise InputError("margin", f"a number or shape {list(gap.shape)}", list(margin.shape))
        return margin.double()
    return margin
