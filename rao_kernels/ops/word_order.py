"""The word order of a call, where it is learnt over calls."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import engine
from ..backends import Head
from ..errors import InputError
from ..types import WordOrder


def learn(
    learner: WordOrder,
    head: Head,
    ignore_index: int | None,
    compute_dtype: torch.dtype,
    tolerance: float,
) -> Tensor | None:
    """``[V]`` the order for the rows of `head`, which `learner` takes in; None without rows, and
    where nothing is dropped.

    As many rows are sampled as `engine.evenly_spaced` takes, the last one where none has a target.
    Nothing is read on the host of a GPU.
    """
    past = learner.affinity
    words = head.weight.shape[:1]
    if past is not None and (past.shape != words or past.dtype != torch.float32):
        raise InputError(
            "word_order",
            f"a WordOrder that was learnt on {words[0]} words, its affinity torch.float32",
            f"one with {past.dtype} of shape {list(past.shape)}",
            "Start a new one.",
        )
    if not head.rows or tolerance == 0.0:
        return None
    with torch.no_grad(), torch.autocast(head.hidden.device.type, enabled=False):
        rows = engine.take(head, _spaced(head.targets, ignore_index))
        sample = engine.sample(replace(rows, hidden=rows.hidden.to(compute_dtype)))
        affinity = learner.observe(sample.affinity.nan_to_num(), rows.rows)
        width = engine.tile_width(len(affinity), head.hidden.device.type, sparse=True)
        return engine.order_words(replace(sample, affinity=affinity), width, tolerance)


def _spaced(targets: Tensor, ignore_index: int | None) -> Tensor:
    """Evenly spaced ones of the rows that have a target; some twice where these are few."""
    rows = targets.numel()
    places = torch.arange(0, rows, engine.sample_step(rows), device=targets.device)
    if ignore_index is None:
        return places
    ranks = (targets != ignore_index).cumsum(0)
    return torch.searchsorted(ranks, places * ranks[-1] // rows + 1).clamp(max=rows - 1)
