"""GRAO: policy gradient without a ratio, towards a gold answer beside the samples.

GRAO (`grao`).

Legend: A_i advantage of response i, mean_g and std_g over the sampled responses to one prompt, r
reward, S sequences. Advantages are taken where given, else computed from the rewards.
"""

from __future__ import annotations

from typing import Unpack

import torch

from . import _policy as policy
from ._inputs import LossInputs
from ._policy import StdOptions
from ._spec import LossSpec
from ._terms import Terms, group_sum, prompt_weights, weighted_mean


def grao(
    inputs: LossInputs,
    *,
    beta: float,
    lam: float,
    gold_in_statistics: bool,
    **options: Unpack[StdOptions],
) -> Terms:
    """GRAO: ``-mean_i [A_i J_i + lam A_i (J_i - J_y)] - beta A_y J_y``, mean over prompts.

    Wang et al. 2025, arXiv 2508.07750, Eq. 3 and 4. J is the mean token log-probability of a
    sampled response i or of the gold answer y; ``A = (r - mean_g(r)) / (std_g(r) + eps)``.

    Args:
        beta: weight of the imitation of the gold answer.
        lam: weight of the gap between samples and gold answer.
        gold_in_statistics: True takes mean_g and std_g over the samples and the gold answer, which
            bounds the gold answer's advantage; False over the samples alone.
        options: see `StdOptions`.

    Returns:
        Values ``[S]``: each response has its prompt's value.
    """
    gold = inputs.require("gold").bool()
    counted = None if gold_in_statistics else ~gold
    advantages = policy.advantages_of(
        inputs,
        lambda: policy.standardized(inputs.require("rewards"), inputs, counted, **options),
    )
    logps = inputs.token_logps.double()
    samples = group_sum((~gold).double(), inputs).clamp(min=1)
    level = policy.sequence_means(advantages, inputs)
    weighted = policy.sequence_means(advantages * logps, inputs)
    mean_advantage = group_sum(level.masked_fill(gold, 0), inputs) / samples
    plain = policy.sequence_means(logps, inputs)
    imitation = beta * weighted - lam * mean_advantage * plain
    exploration = (1 + lam) * weighted / samples
    values = -group_sum(torch.where(gold, imitation, exploration), inputs)
    return Terms(values, {"grao/gold_advantage": weighted_mean(level, gold.double())})


ROWS: tuple[LossSpec, ...] = (
    LossSpec(
        name="grao",
        title="GRAO",
        unit="prompt",
        terms=grao,
        weights=prompt_weights,
        needs=("advantages|rewards", "groups", "gold"),
        defaults={
            "beta": 0.5,
            "lam": 0.6,
            "gold_in_statistics": False,
            "eps": 1e-4,
            "population_std": True,
        },
        paper=(
            "Wang et al. 2025, Learning to Align, Aligning to Learn: A Unified Approach for "
            "Self-Optimized Alignment (Group Relative Alignment Optimization), arXiv 2508.07750, "
            "Eq. 3 and 4"
        ),
        defaults_from=(
            "beta 0.5, lam 0.6 and the population's standard deviation are the "
            "paper's; eps 1e-4 is TRL's for GRPO."
        ),
        notes=(
            "Eq. 4 takes the statistics over the G samples (the default); the text also mentions "
            "one group with the gold answer, which is `gold_in_statistics=True` (with `rao-kernels "
            "train`: --loss_kwargs '{\"gold_in_statistics\": true}'). With the default, "
            "where all samples have one reward, the gold answer's advantage is its difference to "
            "it over eps: 10,000 for samples of 0 and a gold answer of 1, where "
            "`gold_in_statistics=True` gives sqrt(G). A negative advantage lowers the gold "
            "answer's log-probability without bound, as in the paper.",
        ),
    ),
)
