"""The word order of a call, where it is learnt over calls."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import backends, engine
from ..backends import Head
from ..errors import InputError
from ..types import WordOrder


@torch.library.custom_op("rao_kernels::order_words", mutates_args=())
def order_words_op(
    logits: Tensor, affinity: Tensor, size: int, tolerance: float, backend: str
) -> Tensor:
    """`engine.order_words` for the tiles of the call's plan, `size` being its D.

    The tiles do not depend on the number of rows, so that the sampled rows stand for all of them.
    An operator, because a compiler cannot trace the choice of a backend.
    """
    plan = engine.make_plan(
        logits.shape[0],
        logits.shape[1],
        size,
        logits.dtype,
        backend=backends.select(backend or None, logits.device, logits.dtype),
        device_type=logits.device.type,
        workspace_bytes=0,
        tolerance=tolerance,
    )
    return engine.order_words(engine.Sample(logits, affinity), plan.width, tolerance)


@order_words_op.register_fake
def _(logits: Tensor, affinity: Tensor, size: int, tolerance: float, backend: str) -> Tensor:
    return affinity.new_empty(affinity.shape, dtype=torch.int64)


def learn(
    learner: WordOrder,
    head: Head,
    ignore_index: int | None,
    compute_dtype: torch.dtype,
    tolerance: float,
    backend: str,
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
        order: Tensor = order_words_op(
            sample.logits, affinity, head.hidden.shape[1], tolerance, backend
        )
        return order


def _spaced(targets: Tensor, ignore_index: int | None) -> Tensor:
    """Evenly spaced ones of the rows that have a target; some twice where these are few."""
    rows = targets.numel()
    places = torch.arange(0, rows, engine.sample_step(rows), device=targets.device)
    if ignore_index is None:
        return places
    ranks = (targets != ignore_index).cumsum(0)
    return torch.searchsorted(ranks, places * ranks[-1] // rows + 1).clamp(max=rows - 1)
