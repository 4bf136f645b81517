"""GRAO: policy gradient without a ratio, towards a gold answer beside the samples.

Legend: A_i advantage of response i, mean_g and std_g over the sampled responses to one prompt.
Advantages are taken where they are given and else formed from the rewards.
"""

from __future__ import annotations

from typing import Unpack

import torch

from . import _policy as policy
from ._inputs import LossInputs
from ._policy import StdOptions
from ._spec import LossSpec
from ._terms import Terms, group_sum, prompt_weights, weighted_mean


def grao(inputs: LossInputs, *, beta: float, lam: float, **options: Unpack[StdOptions]) -> Terms:
    """GRAO: ``-mean_i [A_i J_i + lam A_i (J_i - J_y)] - beta A_y J_y``, mean over prompts.

    J is the mean token log-probability of a sampled response i, or of the gold answer y;
    ``A = (r - mean_g(r)) / (std_g(r) + eps)`` with the statistics of the samples alone
    (arXiv 2508.07750). Values ``[S]``: each response has its prompt's.
    """
    gold = inputs.require("gold").bool()
    advantages = policy.advantages_of(
        inputs,
        lambda: policy.standardized(inputs.require("rewards"), inputs, ~gold, **options),
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
        unit="prompt",
        terms=grao,
        weights=prompt_weights,
        needs=("advantages|rewards", "groups", "gold"),
        defaults={"beta": 0.5, "lam": 0.6, "eps": 1e-4, "population_std": True},
        paper="Group Relative Alignment Optimization, arXiv 2508.07750",
        notes=(
            "The paper leaves open whether the statistics include the gold answer: they do not "
            "here. Where all samples have one reward, the gold answer's advantage is what it has "
            "beyond them over eps: raise eps to bound it, or give `advantages`. A negative one "
            "pushes the gold answer down without bound, as in the paper.",
        ),
    ),
)
