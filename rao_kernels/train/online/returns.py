"""Advantages and returns of PPO, and win rates within a group, from a round's rewards.

Legend: N tokens of a response, K responses to a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def token_rewards(reward: float, old: Tensor, reference: Tensor | None, kl_coef: float) -> Tensor:
    """Return ``[N]`` fp64 ``-kl_coef (log pi_old - log pi_ref)``, and `reward` at the last token.

    Args:
        reward: of the whole response.
        old, reference: ``[N]`` log-probs of its tokens under the policy that sampled it and under
            the reference, in nats; reference: None where kl_coef is 0.
        kl_coef: weight of the KL, in reward per nat.
    """
    rewards = torch.zeros(len(old), dtype=torch.float64)
    if reference is not None:
        rewards -= kl_coef * (old.double() - reference.double())
    rewards[-1] += reward
    return rewards


def advantages_and_returns(
    rewards: Tensor, values: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Estimate generalised advantages (Schulman et al. 2016, arXiv 1506.02438, Eq. 16).

    ``A_t = sum_k (gamma lambda)^k delta_{t+k}``, ``delta_t = r_t + gamma V_{t+1} - V_t``; after the
    last token V is 0.

    Args:
        rewards, values: ``[N]``, of each token, and before it.

    Returns:
        ``[N]`` advantages and returns ``A + V``, both fp64.
    """
    values = values.double()
    following = torch.cat([values[1:], values.new_zeros(1)])
    deltas = rewards.double() + gamma * following - values
    advantages, last = torch.zeros_like(deltas), 0.0
    for t in range(len(deltas) - 1, -1, -1):
        last = float(deltas[t]) + gamma * gae_lambda * last
        advantages[t] = last
    return advantages, advantages + values


def whiten(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors ``[N]`` shifted and scaled so that all their values have mean 0 and std 1.

    Values that are all equal become 0.
    """
    values = torch.cat(list(parts))
    mean = values.mean()
    deviation = (values - mean).square().mean().sqrt()
    return [(part - mean) / deviation.clamp(min=1e-8) for part in parts]


def win_rates(rewards: Sequence[float]) -> list[float]:
    """Return for each of K rewards the share of the K - 1 others that it beats; a tie is half.

    It estimates the probability that a response beats another of the same policy, which SPPO
    learns from, where the preference of two responses is that of the greater reward.

    Args:
        rewards: at least two.
    """
    values = torch.tensor(rewards, dtype=torch.float64)
    beaten = (values[:, None] > values).double() + 0.5 * (values[:, None] == values).double()
    shares: list[float] = ((beaten.sum(1) - 0.5) / (len(values) - 1)).tolist()
    return shares
