"""Policy gradients with importance ratios, their clips and their normalisers.

Legend: rho_t ratio of the policy's probability of token t to the sampling policy's, A_i advantage
of response i, r_i its reward, mean_g and std_g over the responses to one prompt, clip(x) into
``[1 - clip_low, 1 + clip_high]``, l_t log-probability, sg without gradient.
Every loss takes advantages where they are given and else forms them from the rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from ..errors import InputError
from . import _policy as policy
from ._inputs import LossInputs
from ._policy import ClipOptions, GroupOptions, Mean, PolicyOptions, StdOptions
from ._spec import REFERENCE, LossSpec, Unit
from ._terms import (
    Terms,
    check_positive,
    group_sum,
    log_ratios,
    prompt_weights,
    sequence_weights,
    weighted_mean,
)

# PPO's surrogate, at the level of tokens or of sequences.


def ppo(
    inputs: LossInputs,
    *,
    value_coef: float,
    value_clip: float | None,
    **options: Unpack[PolicyOptions],
) -> Terms:
    """PPO: ``-min(rho_t A_t, clip(rho_t) A_t) + value_coef E_t``, mean over tokens.

    ``E = max((V - R)^2, (V_old + clip(V - V_old, -value_clip, value_clip) - R)^2) / 2`` with the
    value model's V and the returns R (arXiv 1707.06347).
    """
    advantages = policy.spread(inputs.require("advantages"), inputs).detach()
    terms = _clipped(inputs, policy.token_log_ratios(inputs), advantages, policy.tokens, **options)
    if value_coef == 0:
        return terms
    errors = _value_errors(inputs, value_clip)
    metrics = {**terms.metrics, "value_loss": policy.token_mean(errors)}
    return Terms(terms.values + check_positive("value_coef", value_coef) * errors, metrics)


def _value_errors(inputs: LossInputs, value_clip: float | None) -> Tensor:
    """``[N]`` half the squared error of the values, pessimistic about leaving the old ones."""
    values = policy.spread(inputs.require("values"), inputs)
    returns = inputs.require("returns").detach().double()
    squared = (values - returns).square()
    if value_clip is None:
        return squared / 2
    check_positive("value_clip", value_clip)
    old = (values if inputs.old_values is None else inputs.old_values.double()).detach()
    held = old + (values - old).clamp(-value_clip, value_clip)
    return torch.maximum(squared, (held - returns).square()) / 2


def grpo(inputs: LossInputs, **options: Unpack[GroupOptions]) -> Terms:
    """GRPO: ``mean_t -min(rho_t A_i, clip(rho_t) A_i)``, mean over sequences.

    ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)`` (arXiv 2402.03300).
    """
    return _grouped(inputs, policy.token_log_ratios(inputs), policy.sequence_means, **options)


def dr_grpo(
    inputs: LossInputs, *, max_completion_length: float | None, **options: Unpack[PolicyOptions]
) -> Terms:
    """Dr. GRPO: ``sum_t -min(rho_t A_i, clip(rho_t) A_i) / L``, mean over sequences.

    ``A_i = r_i - mean_g(r)``; L is `max_completion_length`, 1 for None (arXiv 2503.20783).
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

    ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)`` (arXiv 2503.14476).
    """
    return _grouped(inputs, policy.token_log_ratios(inputs), policy.tokens, **options)


def bnpo(inputs: LossInputs, **options: Unpack[GroupOptions]) -> Terms:
    """BNPO: ``-min(rho_t A_i, clip(rho_t) A_i)``, mean over the tokens of this batch.

    ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)``. A normaliser counts sequences: several batches
    under one give the mean of their means.
    """
    return _grouped(inputs, policy.token_log_ratios(inputs), policy.batch_token_means, **options)


def gspo(inputs: LossInputs, **options: Unpack[GroupOptions]) -> Terms:
    """GSPO: ``-min(s_i A_i, clip(s_i) A_i)``, mean over sequences.

    ``s_i = exp(mean_t log rho_t)``; ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)``
    (arXiv 2507.18071).
    """
    return _grouped(inputs, policy.mean_log_ratios(inputs), policy.sequence_means, **options)


def luspo(inputs: LossInputs, **options: Unpack[GroupOptions]) -> Terms:
    """LUSPO: ``-n_i min(s_i A_i, clip(s_i) A_i)``, mean over sequences of n_i tokens.

    ``s_i = exp(mean_t log rho_t)``; ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)``
    (arXiv 2602.05261).
    """
    return _grouped(inputs, policy.mean_log_ratios(inputs), policy.sequence_sums, **options)


def rloo(inputs: LossInputs, *, kl_beta: float, **clip: Unpack[ClipOptions]) -> Terms:
    """RLOO: ``-min(w_i A_i, clip(w_i) A_i)``, mean over sequences.

    ``w_i = exp(sum_t log rho_t)``; ``A_i = R_i - mean of the others' R`` in the group;
    ``R_i = r_i - kl_beta log(pi_old / pi_ref)`` (arXiv 2402.14740).
    """
    if kl_beta != 0 and inputs.advantages is not None:
        raise InputError("kl_beta", "0 with advantages given: a penalty is part of them", kl_beta)
    advantages = policy.advantages_of(
        inputs, lambda: policy.leave_one_out(_penalized_rewards(inputs, kl_beta), inputs)
    )
    ratios = policy.sequence_log_ratios(inputs)
    return _clipped(inputs, ratios, advantages, policy.sequence_means, kl_beta=0.0, **clip)


def _penalized_rewards(inputs: LossInputs, kl_beta: float) -> Tensor:
    """``[S]`` rewards less the sampling policy's log-ratio to the reference."""
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
    """`_clipped` with standardised rewards for advantages."""
    advantages = _standardized(inputs, eps=eps, population_std=population_std)
    return _clipped(inputs, ratios, advantages, mean, **options)


def _standardized(inputs: LossInputs, **options: Unpack[StdOptions]) -> Tensor:
    """``[N]`` advantages given, or standardised rewards."""
    return policy.advantages_of(
        inputs, lambda: policy.standardized(inputs.require("rewards"), inputs, **options)
    )


def _clipped(
    inputs: LossInputs,
    ratios: Tensor,
    advantages: Tensor,
    mean: Mean,
    *,
    kl_beta: float,
    **clip: Unpack[ClipOptions],
) -> Terms:
    """PPO's surrogate of log-ratios and advantages ``[N]``, reduced by `mean`."""
    surrogate = policy.clipped(ratios, advantages, **clip)
    bounds = policy.log_bounds(clip["clip_low"], clip["clip_high"])
    metrics = policy.ratio_metrics(ratios, advantages, *bounds)
    return policy.policy_terms(inputs, surrogate, mean, kl_beta=kl_beta, metrics=metrics)


# Other surrogates.


def gmpo(
    inputs: LossInputs,
    *,
    clip_low: float,
    clip_high: float,
    kl_beta: float,
    **options: Unpack[StdOptions],
) -> Terms:
    """GMPO: ``-A_i exp(mean_t k_t)``, mean over sequences.

    ``k_t = min(log rho_t, clip_high)`` where A_i >= 0, else ``max(log rho_t, -clip_low)``;
    ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)`` (arXiv 2507.20673).
    """
    low, high = -policy.check_clip("clip_low", clip_low), policy.check_clip("clip_high", clip_high)
    advantages = _standardized(inputs, **options)
    ratios = policy.token_log_ratios(inputs)
    held = policy.one_sided(ratios, advantages, low, high)
    geometric_mean = policy.ratio(policy.sequence_means(held, inputs)[inputs.segments])
    metrics = policy.ratio_metrics(ratios, advantages, low, high)
    return policy.policy_terms(
        inputs,
        -advantages * geometric_mean,
        policy.sequence_means,
        kl_beta=kl_beta,
        metrics=metrics,
    )


def cispo(
    inputs: LossInputs,
    *,
    clip_low: float,
    clip_high: float,
    kl_beta: float,
    **options: Unpack[StdOptions],
) -> Terms:
    """CISPO: ``-sg(clip(rho_t)) A_i l_t``, mean over tokens.

    ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)`` (arXiv 2506.13585).
    """
    low, high = policy.log_bounds(clip_low, clip_high)
    advantages = _standardized(inputs, **options)
    ratios = policy.token_log_ratios(inputs).detach()
    weights = policy.ratio(ratios.clamp(low, high))
    surrogate = -weights * advantages * inputs.token_logps.double()
    metrics = {
        "ratio/mean": policy.token_mean(policy.ratio(ratios)),
        "clip_ratio/low_mean": policy.token_mean(ratios < low),
        "clip_ratio/high_mean": policy.token_mean(ratios > high),
    }
    return policy.policy_terms(inputs, surrogate, policy.tokens, kl_beta=kl_beta, metrics=metrics)


def sapo(
    inputs: LossInputs,
    *,
    temperature_pos: float,
    temperature_neg: float,
    kl_beta: float,
    **options: Unpack[StdOptions],
) -> Terms:
    """SAPO: ``mean_t -(4 / T) sigmoid(T (rho_t - 1)) A_i``, mean over sequences.

    T is `temperature_pos` where A_i > 0, else `temperature_neg`;
    ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)`` (arXiv 2511.20347).
    """
    check_positive("temperature_pos", temperature_pos)
    check_positive("temperature_neg", temperature_neg)
    advantages = _standardized(inputs, **options)
    ratios = policy.token_log_ratios(inputs)
    temperature = _choose(advantages > 0, temperature_pos, temperature_neg)
    gate = 4 / temperature * (temperature * (policy.ratio(ratios) - 1)).sigmoid()
    metrics = {"ratio/mean": policy.token_mean(policy.ratio(ratios))}
    return policy.policy_terms(
        inputs, -gate * advantages, policy.sequence_means, kl_beta=kl_beta, metrics=metrics
    )


def vespo(
    inputs: LossInputs,
    *,
    k: tuple[float, float],
    lam: tuple[float, float],
    kl_beta: float,
    **options: Unpack[StdOptions],
) -> Terms:
    """VESPO: ``-sg(exp(lam + k log w_i - lam w_i)) A_i l_t``, mean over tokens.

    ``log w_i = sum_t log rho_t``; of `k` and `lam` the first where A_i >= 0, else the second;
    ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)`` (arXiv 2602.10693).
    """
    advantages = _standardized(inputs, **options)
    ratios = policy.sequence_log_ratios(inputs).detach()
    power = _choose(advantages >= 0, *_check_pair("k", k))
    rate = _choose(advantages >= 0, *_check_pair("lam", lam))
    weights = (rate + power * ratios - rate * policy.ratio(ratios)).exp()
    surrogate = -weights * advantages * inputs.token_logps.double()
    metrics = {
        "ratio/mean": policy.token_mean(policy.ratio(ratios)),
        "vespo/phi_mean": policy.token_mean(weights),
    }
    return policy.policy_terms(inputs, surrogate, policy.tokens, kl_beta=kl_beta, metrics=metrics)


def _choose(condition: Tensor, yes: float, no: float) -> Tensor:
    """``[N]`` fp64."""
    return torch.full_like(condition, no, dtype=torch.float64).masked_fill(condition, yes)


def _check_pair(name: str, value: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(name, "two numbers, for A >= 0 and A < 0", value)
    return value


# Without a ratio.


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


# Rows.

_STD = {"eps": 1e-4, "population_std": False}
_SOFT = {"kl_beta": 0.0, **_STD}
_PPO = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None, "kl_beta": 0.0}
_GROUPED = {**_PPO, **_STD}
_STD_NOTE = (
    "Advantages: eps 1e-4 beside the sample's standard deviation is TRL's; verl has 1e-6, HALOs "
    "1e-2 beside the population's (`population_std=True`). Others, such as TRL's "
    "scale_rewards='batch', are given as `advantages`, which win over rewards."
)
_DUAL_NOTE = (
    "`dual_clip` is verl's clip_ratio_c (3.0), and TRL's and Liger's delta where that is above "
    "1 + clip_high."
)
_KL_NOTE = (
    "The k3 penalty is off unless kl_beta is given, also with a reference; the GRPO paper has "
    "0.04. verl holds its exponent at 20 and its value at 10, without gradient beyond; here "
    "exponentials, ratios among them, go on as their tangent from 70."
)


def _row(
    name: str,
    unit: Unit,
    terms: Callable[..., Terms],
    defaults: Mapping[str, Any],
    paper: str,
    *notes: str,
) -> LossSpec:
    """A loss with advantages given or formed from rewards, and the k3 penalty."""
    return LossSpec(
        name=name,
        unit=unit,
        terms=terms,
        weights=sequence_weights if unit == "sequence" else policy.token_weights,
        needs=("advantages|rewards", "ref_token_logps"),
        optional=("groups", "old_token_logps"),
        defaults=defaults,
        paper=paper,
        waived={"ref_token_logps": (("kl_beta", 0.0),)},
        notes=notes,
    )


ROWS: tuple[LossSpec, ...] = (
    LossSpec(
        name="ppo",
        unit="token",
        terms=ppo,
        weights=policy.token_weights,
        needs=("advantages", "values", "returns", "ref_token_logps"),
        optional=("old_token_logps", "old_values"),
        defaults={**_PPO, "value_coef": 0.1, "value_clip": 0.2},
        paper="Proximal Policy Optimization, arXiv 1707.06347",
        waived={
            "values": (("value_coef", 0.0),),
            "returns": (("value_coef", 0.0),),
            "ref_token_logps": (("kl_beta", 0.0),),
        },
        notes=(
            "Advantages and returns come from the rollout: the reward with its KL penalty, "
            "generalised advantage estimation and whitening are not part of the loss. value_coef "
            "0.1 and value_clip 0.2 are TRL's; `value_clip=None` is the plain squared error, "
            "`value_coef=0` the policy's part alone.",
            _DUAL_NOTE,
        ),
    ),
    _row(
        "grpo",
        "sequence",
        grpo,
        _GROUPED,
        "Group Relative Policy Optimization, arXiv 2402.03300",
        _STD_NOTE,
        _KL_NOTE,
        _DUAL_NOTE,
    ),
    _row(
        "dr_grpo",
        "sequence",
        dr_grpo,
        {**_PPO, "max_completion_length": None},
        "Dr. GRPO, arXiv 2503.20783",
        "The paper's equation sums over tokens; TRL, Liger and the authors' code divide by the "
        "generation budget: give it as `max_completion_length`.",
    ),
    _row(
        "dapo",
        "token",
        dapo,
        {**_GROUPED, "clip_high": 0.28},
        "DAPO, arXiv 2503.14476",
        "Overlong and dynamic sampling are a matter of the data. TRL's and Liger's epsilon_high "
        "is epsilon (0.2) unless given.",
    ),
    _row(
        "bnpo",
        "sequence",
        bnpo,
        _GROUPED,
        "GRPO with a mean over the batch's tokens, as TRL's bnpo",
        "The paper of that name (arXiv 2506.02864) is about another advantage. Each micro-batch "
        "counts by its sequences here, each the same in TRL.",
    ),
    _row(
        "gspo",
        "sequence",
        gspo,
        {**_GROUPED, "clip_low": 3e-4, "clip_high": 4e-4},
        "Group Sequence Policy Optimization, arXiv 2507.18071",
        "TRL: loss_type='grpo' with importance_sampling_level='sequence'.",
    ),
    _row(
        "luspo",
        "sequence",
        luspo,
        {**_GROUPED, "clip_low": 2e-3, "clip_high": 2.5e-3},
        "Length-Unbiased Sequence Policy Optimization, arXiv 2602.05261",
        "As TRL with importance_sampling_level='sequence'. Liger has the same without a KL "
        "penalty; with one it averages the penalty over padded positions too.",
    ),
    _row(
        "gmpo",
        "sequence",
        gmpo,
        {"clip_low": 0.4, "clip_high": 0.4, **_SOFT},
        "Geometric-Mean Policy Optimization, arXiv 2507.20673",
        "clip_low and clip_high bound the log-ratio, as in the paper, TRL and verl.",
    ),
    _row(
        "cispo",
        "token",
        cispo,
        {"clip_low": 1.0, "clip_high": 4.0, **_SOFT},
        "CISPO (MiniMax-M1), arXiv 2506.13585",
        "The weight's upper bound is 1 + clip_high, as in the paper and verl. TRL and Liger clamp "
        "at epsilon_high itself: their 5.0 is `clip_high=4.0`, and their default of 0.2 caps "
        "every weight at 0.2. The paper gives no number; 5 is ScaleRL's. clip_low 1 is no lower "
        "bound; verl's default is 0.2 on both sides.",
    ),
    _row(
        "sapo",
        "sequence",
        sapo,
        {"temperature_pos": 1.0, "temperature_neg": 1.05, **_SOFT},
        "Soft Adaptive Policy Optimization, arXiv 2511.20347",
        "TRL rounds the temperatures to fp32: its 1.05 is 2e-8 less.",
    ),
    _row(
        "vespo",
        "token",
        vespo,
        {"k": (2.0, 3.0), "lam": (3.0, 2.0), **_SOFT},
        "VESPO, arXiv 2602.10693",
        "TRL and Liger clamp each token's log-ratio at +-20 before the sum: another number where "
        "one token is beyond.",
    ),
    LossSpec(
        name="rloo",
        unit="sequence",
        terms=rloo,
        weights=sequence_weights,
        needs=("advantages|rewards", REFERENCE),
        optional=("groups", "old_token_logps"),
        defaults=_PPO,
        paper="REINFORCE Leave-One-Out, arXiv 2402.14740",
        waived={REFERENCE: (("kl_beta", 0.0),)},
        notes=(
            "The penalty is part of the reward, as in the paper and TRL (its beta is 0.05), not "
            "added to the loss. The clip is TRL's; on policy it does nothing.",
        ),
    ),
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
