"""What is logged of a round and of held-out samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .rollouts import Lists, Rollout


def describe_samples(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return statistics of the rewards and the responses.

    Mean and deviation of the rewards, the mean length, the share that was cut, and the number of
    prompts without rewards.
    """
    known = [reward for one in rollouts for reward in one.rewards or ()]
    rewards = torch.tensor(known, dtype=torch.float64)
    lengths = [float(len(ids)) for one in rollouts for ids in one.response_ids]
    cut = [not finished for one in rollouts for finished in one.finished]
    return {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std(unbiased=False)),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/clipped_ratio": sum(cut) / len(cut),
        "completions/unscored": float(sum(one.unscored is not None for one in rollouts)),
    }


def describe_round(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return `describe_samples`, and where known the policy's entropy and KL to the reference.

    Both are means per token of the responses, in nats; the KL is the estimate ``exp(d) - d - 1``,
    d = log(pi_ref / pi) (Schulman 2020).
    """
    metrics = describe_samples(rollouts)
    entropies = [(one.entropy, _tokens(one)) for one in rollouts if one.entropy is not None]
    if entropies:
        total = sum(entropy * tokens for entropy, tokens in entropies)
        metrics["completions/entropy"] = total / sum(tokens for _, tokens in entropies)
    known = [one for one in rollouts if one.old_token_logps and one.ref_token_logps]
    old = [value for one in known for value in _of_responses(one, one.old_token_logps)]
    reference = [value for one in known for value in _of_responses(one, one.ref_token_logps)]
    if old:
        ratios = torch.tensor(reference, dtype=torch.float64) - torch.tensor(old).double()
        metrics["completions/kl"] = float((torch.expm1(ratios) - ratios).mean())
    return metrics


def _tokens(rollout: Rollout) -> int:
    """Return the number of tokens of the responses, without the gold answer."""
    return sum(map(len, rollout.response_ids))


def _of_responses(rollout: Rollout, values: Lists | None) -> list[float]:
    """Return the values of the tokens of the responses, without the gold answer's."""
    return [value for part in (values or [])[: len(rollout.responses)] for value in part]
