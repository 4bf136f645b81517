"""Fill a reference cache: keep valid shards, score the others."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

from ..errors import DataError, InputError
from ..sequence import SequenceBatch
from ..types import EngineOptions
from .store import ReferenceCache, RowValues, ShardValues

logger = logging.getLogger(__name__)

CachePolicy = Literal["reuse", "require", "rebuild"]
Score = Callable[[range], ShardValues]


def fill_cache(
    cache: ReferenceCache,
    score: Score,
    *,
    policy: CachePolicy = "reuse",
    rank: int = 0,
    world_size: int = 1,
    progress: bool = False,
) -> None:
    """Make every shard of this rank valid.

    Each shard is stored as soon as it is scored, so that an interrupted run continues where it
    stopped.

    Args:
        cache: the cache to fill.
        score: returns the values of consecutive records.
        policy: "reuse": keep valid shards, score missing and damaged ones; "require": raise where
            one is missing or damaged; "rebuild": score all of them again.
        rank, world_size: this process takes shards rank, rank + world_size, ...
        progress: show a progress bar.

    Raises:
        DataError: under "require" a shard is missing or damaged.
        InputError: `policy` is none of these.
    """
    if policy not in ("reuse", "require", "rebuild"):
        raise InputError("policy", "'reuse', 'require' or 'rebuild'", repr(policy))
    if policy == "require" and not cache.directory.is_dir():
        raise DataError(str(cache.directory), f"no reference cache for this run; {cache.nearest()}")
    cache.prepare()
    shards = cache.shards()[rank::world_size]
    stale = shards if policy == "rebuild" else _unusable(cache, shards, policy)
    for rows in _with_progress(stale) if progress and stale else stale:
        cache.write(rows, score(rows))


def _unusable(cache: ReferenceCache, shards: list[range], policy: CachePolicy) -> list[range]:
    unusable = []
    for rows in shards:
        try:
            cache.read(rows)
        except DataError as error:
            if policy == "require":
                raise
            if cache.path(rows).exists():
                logger.warning("%s It is scored again.", error)
            unusable.append(rows)
    return unusable


def _with_progress(shards: list[range]) -> Iterator[range]:
    from tqdm.auto import tqdm

    with tqdm(total=sum(map(len, shards)), desc="reference log-probs", unit="prompt") as bar:
        for rows in shards:
            yield rows
            bar.update(len(rows))


@contextlib.contextmanager
def reference_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode without gradients, with its adapter, if any, disabled."""
    training = model.training
    disable = getattr(model, "disable_adapter", contextlib.nullcontext)
    model.eval()
    try:
        with torch.no_grad(), disable():
            yield
    finally:
        model.train(training)


def score_batch(
    model: nn.Module,
    tensors: Mapping[str, Any],
    *,
    engine_options: EngineOptions,
    per_token: bool,
) -> list[RowValues]:
    """Score a collated micro-batch: reference log-probabilities, one `RowValues` per prompt.

    Args:
        model: with the fused head (`hf.attach_fused_head`), in `reference_mode`.
        tensors: what `data.Collator` returns, on the model's device.
        engine_options: options of the op.
        per_token: True keeps the log-probs of single tokens beside the sums.
    """
    batch: SequenceBatch = tensors["sequences"]
    token_logps = model(
        input_ids=tensors["input_ids"],
        attention_mask=tensors["attention_mask"],
        logp_targets=batch.logp_targets,
        logp_grad_mask=batch.logp_grad_mask,
        engine_options=engine_options,
    ).token_logps
    inputs = batch.loss_inputs(token_logps)
    assert inputs.prompt_logps is not None
    groups = batch.groups
    values = []
    for prompt in range(int(groups.max()) + 1):
        own = groups == prompt
        longest = int(tensors["attention_mask"][own].sum(-1).max())
        tokens = token_logps[own, :longest].flatten().float().cpu() if per_token else None
        responses = inputs.logps[own].cpu()
        values.append(RowValues(float(inputs.prompt_logps[own][0]), responses, tokens))
    return values


def join_rows(values: list[RowValues]) -> ShardValues:
    """Join the values of consecutive records to one shard."""
    tokens = [row.tokens for row in values if row.tokens is not None]
    return ShardValues(
        torch.tensor([row.prompt for row in values], dtype=torch.float64),
        torch.cat([row.responses for row in values]),
        torch.cat(tokens) if tokens else torch.zeros(0),
    )
