"""Peaked logits like a trained model's on text, from random numbers and at any size.

Random operands give flat logits, of which a sparse backward drops nothing. These are products of
``hidden [N, D]`` and ``weight [V, D]`` too, with the three parts that a language model's logits
have, each along random directions of its own:

    logits = scale (-log(1 + rank_v) + TOPIC_GAIN [topic_v = topic_n] + NOISE e_nv)

rank_v: a random rank of each entry, which gives Zipf's law of frequencies. topic: one of `TOPICS`
for each row and entry, which gives clusters of entries that the same rows need. e: a normal sample.
Targets are drawn from the softmax. `calibrated` finds the scale at which the op keeps as many pairs
of row and tile as on real text: 0.233 of those of 4,096 entries at a tolerance of 2^-9
(docs/sparse.md, SmolLM2-135M). Legend: N rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import engine, linear_logprobs
from .cases import Head

TOPICS = 64
TOPIC_GAIN, NOISE = 4.0, 2.0
PART_NORM = 8.0  # of a row along the directions of frequency and topic, against 1 of the noise
TOLERANCE = 2.0**-9
KEPT_SHARE = 0.233
SCALE = 2.08  # of the benchmark's cases: `calibrated` at D = 4096 and V = 128256
SCALES, STEPS = (0.125, 8.0), 9  # that `calibrated` searches, and its bisections
DRAWN_ROWS = 256  # rows whose targets are drawn at once


def operands(
    rows: int, head: Head, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return hidden, in fp32 and not scaled yet, and weight in `dtype`."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def topic(count: int) -> Tensor:
        return torch.randint(TOPICS, (count,), generator=generator, device=device)

    directions = torch.nn.functional.normalize(normal(1 + TOPICS, head.size), dim=1)
    rank = torch.randperm(head.vocabulary, generator=generator, device=device)
    weight = normal(head.vocabulary, head.size).mul_(NOISE / math.sqrt(head.size))
    weight -= (1.0 + rank).log()[:, None] / PART_NORM * directions[0]
    weight += TOPIC_GAIN / PART_NORM * directions[1 + topic(head.vocabulary)]
    hidden = normal(rows, head.size)
    hidden += PART_NORM * (directions[0] + directions[1 + topic(rows)])
    return hidden, weight.to(dtype)


def scaled(hidden: Tensor, weight: Tensor, scale: float = SCALE) -> tuple[Tensor, Tensor]:
    """Return hidden in the dtype of the weight, scaled, and targets ``[N]`` from the softmax."""
    generator = torch.Generator(hidden.device).manual_seed(1)
    made = (scale * hidden).to(weight.dtype)
    drawn = [
        torch.softmax((part @ weight.T).float(), 1).multinomial(1, generator=generator)
        for part in made.split(DRAWN_ROWS)
    ]
    return made, torch.cat(drawn).squeeze(1)


def kept_share(hidden: Tensor, weight: Tensor, targets: Tensor) -> float:
    """Return the share of pairs of row and tile that a backward at `TOLERANCE` keeps."""
    hidden, weight = (tensor.detach().requires_grad_() for tensor in (hidden, weight))
    with engine.record_work() as work:
        logps = linear_logprobs(hidden, weight, targets, grad_tolerance=TOLERANCE)
        torch.autograd.grad(logps.sum(), (hidden, weight))
    return work.row_tiles_kept / work.row_tiles


def calibrated(hidden: Tensor, weight: Tensor, share: float = KEPT_SHARE) -> float:
    """Return the scale at which about `share` of the pairs is kept; a larger one keeps fewer."""
    low, high = SCALES
    for _ in range(STEPS):
        scale = math.sqrt(low * high)
        made, targets = scaled(hidden, weight, scale)
        if kept_share(made, weight, targets) > share:
            low = scale
        else:
            high = scale
    return math.sqrt(low * high)
