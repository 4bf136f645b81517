"""What is logged of a round and of held-out samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .rollouts import Rollout


def describe_samples(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return mean and deviation of the rewards, the mean length, and the share that was cut."""
    rewards = torch.tensor([r for one in rollouts for r in one.rewards], dtype=torch.float64)
    lengths = [float(len(ids)) for one in rollouts for ids in one.response_ids]
    cut = [not finished for one in rollouts for finished in one.finished]
    return {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std(unbiased=False)),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/clipped_ratio": sum(cut) / len(cut),
    }


def describe_round(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return `describe_samples`, and where known the policy's entropy and KL to the reference.

    Both are means per token, in nats; the KL is the estimate ``exp(d) - d - 1``, d = log(pi_ref /
    pi) (Schulman 2020).
    """
    metrics = describe_samples(rollouts)
    entropies = [one.entropy for one in rollouts if one.entropy is not None]
    if entropies:
        metrics["completions/entropy"] = sum(entropies) / len(entropies)
    pairs = [(one.old_token_logps, one.ref_token_logps) for one in rollouts]
    old = [value for own, other in pairs if own and other for part in own for value in part]
    reference = [value for own, other in pairs if own and other for part in other for value in part]
    if old:
        ratios = torch.tensor(reference, dtype=torch.float64) - torch.tensor(old).double()
        metrics["completions/kl"] = float((torch.expm1(ratios) - ratios).mean())
    return metrics
