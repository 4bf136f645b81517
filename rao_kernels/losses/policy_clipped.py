"""Policy gradients with PPO's clipped surrogate, at the level of tokens or of sequences.

PPO (`ppo`), GRPO (`grpo`), Dr. GRPO (`dr_grpo`), DAPO (`dapo`), BNPO (`bnpo`), GSPO (`gspo`), LUSPO
(`luspo`), RLOO (`rloo`).

Legend: rho_t ratio of the policy's probability of token t to the sampling policy's, A_i advantage
of response i, r_i its reward, mean_g and std_g over the responses to one prompt, clip(x) into
``[1 - clip_low, 1 + clip_high]``, N response tokens, S sequences. Advantages are taken where given,
else computed from the rewards.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from ..errors import InputError
from . import _policy as policy
from ._inputs import LossInputs
from ._policy import ClipOptions, GroupOptions, Mean, PolicyOptions
from ._spec import REFERENCE, LossSpec
from ._terms import Terms, check_positive, log_ratios, sequence_weights


def ppo(
    inputs: LossInputs,
    *,
    value_coef: float,
    value_clip: float | None,
    **options: Unpack[PolicyOptions],
) -> Terms:
    """PPO: ``-min(rho_t A_t, clip(rho_t) A_t) + value_coef E_t``, mean over tokens.

    Schulman et al. 2017, arXiv 1707.06347, Eq. 7. With the value model's V and the returns R,
    ``E = max((V - R)^2, (V_old + clip(V - V_old, -value_clip, value_clip) - R)^2) / 2``.

    Args:
        value_coef: weight of the value model's error; 0 leaves the error out.
        value_clip: largest change of V from V_old, in reward, before the error is clipped; None for
            the plain squared error.
        options: see `PolicyOptions`.

    Returns:
        Values ``[N]``, with the metric `value_loss` where value_coef is not 0.
    """
    advantages = policy.of_tokens("advantages", inputs).detach()
    terms = _clipped(inputs, policy.token_log_ratios(inputs), advantages, policy.tokens, **options)
    if value_coef == 0:
        return terms
    errors = _value_errors(inputs, value_clip)
    metrics = {**terms.metrics, "value_loss": policy.token_mean(errors)}
    return Terms(terms.values + check_positive("value_coef", value_coef) * errors, metrics)


def _value_errors(inputs: LossInputs, value_clip: float | None) -> Tensor:
    """Return ``[N]`` half the squared error of the values, the larger of plain and clipped."""
    values = policy.of_tokens("values", inputs)
    returns = inputs.require("returns").detach().double()
    squared = (values - returns).square()
    if value_clip is None:
        return squared / 2
    check_positive("value_clip", value_clip)
    old = (values if inputs.old_values is None else inputs.old_values.double()).detach()
    clipped = old + (values - old).clamp(-value_clip, value_clip)
    return torch.maximum(squared, (clipped - returns).square()) / 2


def grpo(inputs: LossInputs, **options: Unpack[GroupOptions]) -> Terms:
    """GRPO: ``mean_t -min(rho_t A_i, clip(rho_t) A_i)``, mean over sequences.

    Shao et al. 2024, arXiv 2402.03300, Eq. 3. ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)``.

    Args:
        options: see `GroupOptions`.

    Returns:
        Values ``[S]``.
    """
    return _grouped(inputs, policy.token_log_ratios(inputs), policy.sequence_means, **options)


def dr_grpo(
    inputs: LossInputs, *, max_completion_length: float | None, **options: Unpack[PolicyOptions]
) -> Terms:
    """Dr. GRPO: ``sum_t -min(rho_t A_i, clip(rho_t) A_i) / L``, mean over sequences.

    Liu et al. 2025, arXiv 2503.20783. ``A_i = r_i - mean_g(r)``.

    Args:
        max_completion_length: L, the generation budget in tokens; None for 1.
        options: see `PolicyOptions`.

    Returns:
        Values ``[S]``.
    """
    length = 1.0 if max_completion_length is None else max_completion_length
    check_positive("max_completion_length", length)

    def mean(values: Tensor, inputs: LossInputs) -> Tensor:
        return policy.sequence_sums(values, inputs) / length

    advantages = policy.advantages_of(
        inputs, lambda: policy.centred(inputs.require("rewards"), inputs)
    )
    return _clipped(inputs, policy.token_log_ratios(inputs), advantages, mean, **options)


def dapo(inputs: LossInputs, **options: Unpack[GroupOptions]) -> Terms:
    """DAPO: ``-min(rho_t A_i, clip(rho_t) A_i)``, mean over tokens.

    Yu et al. 2025, arXiv 2503.14476. ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)``.

    Args:
        options: see `GroupOptions`.

    Returns:
        Values ``[N]``.
    """
    return _grouped(inputs, policy.token_log_ratios(inputs), policy.tokens, **options)


def bnpo(inputs: LossInputs, **options: Unpack[GroupOptions]) -> Terms:
    """BNPO: ``-min(rho_t A_i, clip(rho_t) A_i)``, mean over the tokens of this batch.

    TRL 2025. ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)``. A normaliser counts sequences: several
    batches under one give the mean of their means.

    Args:
        options: see `GroupOptions`.

    Returns:
        Values ``[S]``.
    """
    return _grouped(inputs, policy.token_log_ratios(inputs), policy.batch_token_means, **options)


def gspo(inputs: LossInputs, **options: Unpack[GroupOptions]) -> Terms:
    """GSPO: ``-min(s_i A_i, clip(s_i) A_i)``, mean over sequences.

    Zheng et al. 2025, arXiv 2507.18071. ``s_i = exp(mean_t log rho_t)``;
    ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)``.

    Args:
        options: see `GroupOptions`.

    Returns:
        Values ``[S]``.
    """
    return _grouped(inputs, policy.mean_log_ratios(inputs), policy.sequence_means, **options)


def luspo(inputs: LossInputs, **options: Unpack[GroupOptions]) -> Terms:
    """LUSPO: ``-n_i min(s_i A_i, clip(s_i) A_i)``, mean over sequences of n_i tokens.

    Liu et al. 2026, arXiv 2602.05261. ``s_i = exp(mean_t log rho_t)``;
    ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)``.

    Args:
        options: see `GroupOptions`.

    Returns:
        Values ``[S]``.
    """
    return _grouped(inputs, policy.mean_log_ratios(inputs), policy.sequence_sums, **options)


def rloo(inputs: LossInputs, *, kl_beta: float, **clip: Unpack[ClipOptions]) -> Terms:
    """RLOO: ``-min(w_i A_i, clip(w_i) A_i)``, mean over sequences.

    Ahmadian et al. 2024, arXiv 2402.14740. ``w_i = exp(sum_t log rho_t)``; ``A_i = R_i - mean of
    the others' R`` in the group; ``R_i = r_i - kl_beta log(pi_old / pi_ref)``.

    Args:
        kl_beta: weight of the penalty to the reference, in reward per nat, which is part of the
            reward; 0 is none.
        clip: see `ClipOptions`.

    Returns:
        Values ``[S]``.
    """
    if kl_beta != 0 and inputs.advantages is not None:
        raise InputError("kl_beta", "0 with advantages given: a penalty is part of them", kl_beta)
    advantages = policy.advantages_of(
        inputs, lambda: policy.leave_one_out(_penalized_rewards(inputs, kl_beta), inputs)
    )
    ratios = policy.sequence_log_ratios(inputs)
    return _clipped(inputs, ratios, advantages, policy.sequence_means, kl_beta=0.0, **clip)


def _penalized_rewards(inputs: LossInputs, kl_beta: float) -> Tensor:
    """Return ``[S]`` rewards less the sampling policy's log-ratio to the reference."""
    rewards = inputs.require("rewards").double()
    if kl_beta == 0:
        return rewards
    sampled = replace(inputs, token_logps=policy.old_token_logps(inputs))
    return rewards - check_positive("kl_beta", kl_beta) * log_ratios(sampled)


def _grouped(
    inputs: LossInputs,
    ratios: Tensor,
    mean: Mean,
    *,
    eps: float,
    population_std: bool,
    **options: Unpack[PolicyOptions],
) -> Terms:
    """Return the terms of `_clipped` with standardised rewards as advantages."""
    advantages = policy.standardized_advantages(inputs, eps=eps, population_std=population_std)
    return _clipped(inputs, ratios, advantages, mean, **options)


def _clipped(
    inputs: LossInputs,
    ratios: Tensor,
    advantages: Tensor,
    mean: Mean,
    *,
    kl_beta: float,
    **clip: Unpack[ClipOptions],
) -> Terms:
    """Return PPO's surrogate of log-ratios and advantages ``[N]``, reduced by `mean`."""
    surrogate = policy.clipped(ratios, advantages, **clip)
    bounds = policy.log_bounds(clip["clip_low"], clip["clip_high"])
    metrics = policy.ratio_metrics(ratios, advantages, *bounds)
    return policy.policy_terms(inputs, surrogate, mean, kl_beta=kl_beta, metrics=metrics)


ROWS: tuple[LossSpec, ...] = (
    LossSpec(
        name="ppo",
        title="PPO",
        unit="token",
        terms=policy.with_on_policy(ppo),
        weights=policy.token_weights,
        needs=("advantages", "values", "returns", "old_token_logps", "ref_token_logps"),
        optional=("old_values",),
        defaults={**policy.PPO, "value_coef": 0.1, "value_clip": 0.2},
        paper=(
            "Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv 1707.06347, Eq. 7"
        ),
        defaults_from=(
            "the clip of 0.2 is the paper's; value_coef 0.1 and value_clip 0.2 are TRL's."
        ),
        needed_unless={
            "values": (("value_coef", 0.0),),
            "returns": (("value_coef", 0.0),),
            "ref_token_logps": (("kl_beta", 0.0),),
            **policy.OLD_NEEDED_UNLESS,
        },
        notes=(
            "Advantages and returns come from the rollout: the reward with its KL penalty, "
            "generalised advantage estimation and whitening are not part of the loss. "
            "`value_clip=None` is the plain squared error; `value_coef=0` leaves the error out.",
            policy.DUAL_NOTE,
        ),
    ),
    policy.row(
        "grpo",
        "GRPO",
        "sequence",
        grpo,
        policy.GROUPED,
        (
            "Shao et al. 2024, DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open "
            "Language Models (Group Relative Policy Optimization), arXiv 2402.03300, Eq. 3"
        ),
        "the clip of 0.2, kl_beta 0 and eps 1e-4 are TRL's.",
        policy.STD_NOTE,
        policy.KL_NOTE,
        policy.DUAL_NOTE,
    ),
    policy.row(
        "dr_grpo",
        "Dr. GRPO",
        "sequence",
        dr_grpo,
        {**policy.PPO, "max_completion_length": None},
        (
            "Liu et al. 2025, Understanding R1-Zero-Like Training: A Critical Perspective, arXiv "
            "2503.20783"
        ),
        "the clip of 0.2 and kl_beta 0 are TRL's; the sum over tokens is the paper's.",
        "The paper's equation sums over tokens; TRL, Liger and the authors' code divide by the "
        "generation budget: give it as `max_completion_length`.",
    ),
    policy.row(
        "dapo",
        "DAPO",
        "token",
        dapo,
        {**policy.GROUPED, "clip_high": 0.28},
        (
            "Yu et al. 2025, DAPO: An Open-Source LLM Reinforcement Learning System at Scale, "
            "arXiv 2503.14476"
        ),
        "the clip of 0.2 and 0.28 is the paper's (Sec. 4.1); eps 1e-4 is TRL's.",
        "Overlong filtering and dynamic sampling select data and are not part of the loss. TRL's "
        "and Liger's epsilon_high is epsilon (0.2) unless given.",
    ),
    policy.row(
        "bnpo",
        "BNPO",
        "sequence",
        bnpo,
        policy.GROUPED,
        "TRL 2025, GRPO with a mean over the batch's tokens (loss_type='bnpo')",
        "TRL's.",
        "The paper of that name (arXiv 2506.02864) proposes another advantage. Micro-batches are "
        "weighted by their number of sequences here, equally in TRL.",
    ),
    policy.row(
        "gspo",
        "GSPO",
        "sequence",
        gspo,
        {**policy.GROUPED, "clip_low": 3e-4, "clip_high": 4e-4},
        "Zheng et al. 2025, Group Sequence Policy Optimization, arXiv 2507.18071",
        "the clip of 3e-4 and 4e-4 is the paper's (Sec. 5.1); eps 1e-4 is TRL's.",
        "TRL: loss_type='grpo' with importance_sampling_level='sequence'.",
    ),
    policy.row(
        "luspo",
        "LUSPO",
        "sequence",
        luspo,
        {**policy.GROUPED, "clip_low": 2e-3, "clip_high": 2.5e-3},
        (
            "Liu et al. 2026, Length-Unbiased Sequence Policy Optimization: Revealing and "
            "Controlling Response Length Variation in RLVR, arXiv 2602.05261"
        ),
        "the clip of 2e-3 and 2.5e-3 is the paper's (Sec. 5.1); eps 1e-4 is TRL's.",
        "Equal to TRL's with importance_sampling_level='sequence'. Liger's is equal without a KL "
        "penalty; with one it averages the penalty over padded positions too.",
    ),
    LossSpec(
        name="rloo",
        title="RLOO",
        unit="sequence",
        terms=policy.with_on_policy(rloo),
        weights=sequence_weights,
        needs=("advantages|rewards", "old_token_logps", REFERENCE),
        optional=("groups",),
        defaults=policy.PPO,
        paper=(
            "Ahmadian et al. 2024, Back to Basics: Revisiting REINFORCE Style Optimization for "
            "Learning from Human Feedback in LLMs (REINFORCE Leave-One-Out), arXiv 2402.14740"
        ),
        defaults_from=(
            "the clip of 0.2 is TRL's; kl_beta 0 is off, where the paper has 0.03 and TRL 0.05."
        ),
        needed_unless={REFERENCE: (("kl_beta", 0.0),), **policy.OLD_NEEDED_UNLESS},
        notes=(
            "The penalty is part of the reward, as in the paper and TRL, not added to the loss. "
            "The clip is TRL's; on policy it has no effect.",
        ),
    ),
)
