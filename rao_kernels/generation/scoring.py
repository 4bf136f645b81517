"""Log-probs of samples under the model that they were sampled from.

Legend: S sequences (each prompt with each of its samples), T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import InputError
from ..hf import attach_fused_head
from .interface import Sample
from .transformers_sampler import evaluating


def sampled_logps(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    samples: Sequence[Sequence[Sample]],
    temperature: float = 1.0,
) -> list[list[list[float]]]:
    """Return the log-prob of each token of each sample, in nats, by one forward of the model.

    They are those of the whole distribution at this temperature: `top_p` and `top_k`, which leave
    entries out of it, do not count.

    Args:
        model: a causal language model, on the device and in the autocast it is in; its head is
            fused.
        prompts, samples: token ids, and what a `Sampler` returned for them.
        temperature: divides the logits; above 0.

    Returns:
        Per prompt, per sample, one value for each of `Sample.ids`.
    """
    if not temperature > 0:
        fix = "Of the likeliest token alone there is no log-prob to speak of."
        raise InputError("temperature", "a number above 0", temperature, fix)
    pairs = [(list(p), one.ids) for p, group in zip(prompts, samples, strict=True) for one in group]
    ids = torch.zeros(len(pairs), max(len(p) + len(r) for p, r in pairs), dtype=torch.int64)
    mask, targets = torch.zeros_like(ids), torch.full_like(ids, -100)
    for s, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        ids[s, :end] = torch.tensor(prompt + response)
        mask[s, :end] = 1
        targets[s, len(prompt) - 1 : end - 1] = torch.tensor(response)
    device = next(model.parameters()).device
    attach_fused_head(model)
    with evaluating(model):
        found = model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            logp_targets=targets.to(device),
            logp_temperature=temperature,
        ).token_logps.cpu()
    flat = iter(
        found[s, len(prompt) - 1 : len(prompt) + len(response) - 1].tolist()
        for s, (prompt, response) in enumerate(pairs)
    )
    return [[next(flat) for _ in group] for group in samples]
