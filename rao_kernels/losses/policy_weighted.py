"""Policy gradients that bound the ratio in other ways than PPO's clip.

GMPO (`gmpo`), CISPO (`cispo`), SAPO (`sapo`), VESPO (`vespo`).

Legend: rho_t ratio of the policy's probability of token t to the sampling policy's, A_i advantage
of response i, r_i its reward, mean_g and std_g over the responses to one prompt, clip(x) into
``[1 - clip_low, 1 + clip_high]``, l_t log-probability, sg stop-gradient, N response tokens, S
sequences. Advantages are taken where given, else computed from the rewards.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from ..errors import InputError
from . import _policy as policy
from ._inputs import LossInputs
from ._policy import StdOptions
from ._spec import LossSpec
from ._terms import Terms, check_not_negative, check_positive


def gmpo(
    inputs: LossInputs,
    *,
    clip_low: float,
    clip_high: float,
    kl_beta: float,
    **options: Unpack[StdOptions],
) -> Terms:
    """GMPO: ``-A_i exp(mean_t k_t)``, mean over sequences.

    Zhao et al. 2025, arXiv 2507.20673. ``k_t = min(log rho_t, clip_high)`` where A_i >= 0, else
    ``max(log rho_t, -clip_low)``; ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)``.

    Args:
        clip_low: the log-ratio is clipped from below at -clip_low, in nats; 0 or more.
        clip_high: the log-ratio is clipped from above at clip_high, in nats; 0 or more.
        kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none.
        options: see `StdOptions`.

    Returns:
        Values ``[S]``.
    """
    low, high = (
        -check_not_negative("clip_low", clip_low),
        check_not_negative("clip_high", clip_high),
    )
    advantages = policy.standardized_advantages(inputs, **options)
    ratios = policy.token_log_ratios(inputs)
    clipped = policy.one_sided(ratios, advantages, low, high)
    geometric_mean = policy.ratio(policy.sequence_means(clipped, inputs)[inputs.segments])
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

    MiniMax 2025, arXiv 2506.13585, Eq. 4 and 5. ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)``.

    Args:
        clip_low: the weight rho is clipped from below at 1 - clip_low; from 0 to 1.
        clip_high: the weight rho is clipped from above at 1 + clip_high; 0 or more.
        kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none.
        options: see `StdOptions`.

    Returns:
        Values ``[N]``.
    """
    low, high = policy.log_bounds(clip_low, clip_high)
    advantages = policy.standardized_advantages(inputs, **options)
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

    Gao et al. 2025, arXiv 2511.20347. ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)``.

    Args:
        temperature_pos: T where A_i > 0; a larger one lowers the weight of off-policy tokens
            faster.
        temperature_neg: T elsewhere.
        kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none.
        options: see `StdOptions`.

    Returns:
        Values ``[S]``.
    """
    check_positive("temperature_pos", temperature_pos)
    check_positive("temperature_neg", temperature_neg)
    advantages = policy.standardized_advantages(inputs, **options)
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

    Shen et al. 2026, arXiv 2602.10693. ``log w_i = sum_t log rho_t``;
    ``A_i = (r_i - mean_g(r)) / (std_g(r) + eps)``.

    Args:
        k: power of the ratio w, a pair: where A_i >= 0, and elsewhere.
        lam: rate at which the weight decays in w, a pair likewise.
        kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none.
        options: see `StdOptions`.

    Returns:
        Values ``[N]``.
    """
    advantages = policy.standardized_advantages(inputs, **options)
    ratios = policy.sequence_log_ratios(inputs).detach()
    for power, rate in zip(_check_pair("k", k), _check_pair("lam", lam), strict=True):
        check_not_negative("k", power)
        check_positive("lam", rate)
    powers, rates = (_choose(advantages >= 0, *pair) for pair in (k, lam))
    weights = (rates + powers * ratios - rates * policy.ratio(ratios)).exp()
    surrogate = -weights * advantages * inputs.token_logps.double()
    metrics = {
        "ratio/mean": policy.token_mean(policy.ratio(ratios)),
        "vespo/phi_mean": policy.token_mean(weights),
    }
    return policy.policy_terms(inputs, surrogate, policy.tokens, kl_beta=kl_beta, metrics=metrics)


def _choose(condition: Tensor, yes: float, no: float) -> Tensor:
    """Return ``[N]`` fp64: `yes` where the condition holds, else `no`."""
    return torch.full_like(condition, no, dtype=torch.float64).masked_fill(condition, yes)


def _check_pair(name: str, value: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(name, "two numbers, for A >= 0 and A < 0", value)
    return value


ROWS: tuple[LossSpec, ...] = (
    policy.row(
        "gmpo",
        "GMPO",
        "sequence",
        gmpo,
        {"clip_low": 0.4, "clip_high": 0.4, **policy.SOFT},
        "Zhao et al. 2025, Geometric-Mean Policy Optimization, arXiv 2507.20673",
        "0.4 on both sides is the paper's (Sec. 4); eps 1e-4 is TRL's.",
        "clip_low and clip_high bound the log-ratio, as in the paper, TRL and verl.",
    ),
    policy.row(
        "cispo",
        "CISPO",
        "token",
        cispo,
        {"clip_low": 1.0, "clip_high": 4.0, **policy.SOFT},
        (
            "MiniMax 2025, MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning "
            "Attention, arXiv 2506.13585, Eq. 4 and 5"
        ),
        "no lower bound, and the upper bound of 5 of ScaleRL (arXiv 2510.13786).",
        "The weight's upper bound is 1 + clip_high, as in the paper and verl. TRL and Liger clamp "
        "at epsilon_high itself: their 5.0 is `clip_high=4.0`, and their default of 0.2 caps "
        "every weight at 0.2. The paper gives no number. clip_low 1 means no lower bound; verl's "
        "default is 0.2 on both sides.",
    ),
    policy.row(
        "sapo",
        "SAPO",
        "sequence",
        sapo,
        {"temperature_pos": 1.0, "temperature_neg": 1.05, **policy.SOFT},
        "Gao et al. 2025, Soft Adaptive Policy Optimization, arXiv 2511.20347",
        "TRL's.",
        "TRL rounds the temperatures to fp32: its 1.05 is 2e-8 less.",
    ),
    policy.row(
        "vespo",
        "VESPO",
        "token",
        vespo,
        {"k": (2.0, 3.0), "lam": (3.0, 2.0), **policy.SOFT},
        (
            "Shen et al. 2026, VESPO: Variational Sequence-Level Soft Policy Optimization for "
            "Stable Off-Policy LLM Training, arXiv 2602.10693"
        ),
        "TRL's.",
        "TRL and Liger clamp each token's log-ratio at +-20 before the sum, so that results differ "
        "where a token is beyond.",
    ),
)
