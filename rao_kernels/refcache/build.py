"""Fill a reference cache: keep valid shards, score the others."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import DataError, InputError
from ..sequence import IGNORE, SequenceBatch
from ..sequence.model_inputs import model_inputs
from ..types import EngineOptions
from .start import StartWeights
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
def reference_mode(model: nn.Module, start: StartWeights | None = None) -> Iterator[None]:
    """Put the model in evaluation mode without gradients, as the reference.

    start: weights that the model is given meanwhile; None: its adapter, if any, is switched off.
    """
    training = model.training
    disable = getattr(model, "disable_adapter", contextlib.nullcontext)
    model.eval()
    try:
        with torch.no_grad(), disable() if start is None else start.restored(model):
            yield
    finally:
        model.train(training)


def score_batch(
    model: nn.Module,
    tensors: Mapping[str, Any],
    *,
    engine_options: EngineOptions,
    per_token: bool,
    temperature: float = 1.0,
) -> list[RowValues]:
    """Score a collated micro-batch: reference log-probabilities, one `RowValues` per prompt.

    Args:
        model: with the fused head (`hf.attach_fused_head`), in `reference_mode`.
        tensors: what `data.Collator` returns without packing, on the model's device.
        engine_options: options of the op.
        per_token: True keeps the log-probs of single tokens beside the sums.
        temperature: divides the logits, see `logp_temperature` of `hf.attach_fused_head`.
    """
    batch: SequenceBatch = tensors["sequences"]
    score = functools.partial(model, logp_temperature=temperature, engine_options=engine_options)
    token_logps = score(
        **model_inputs(tensors),
        logp_targets=batch.logp_targets,
        logp_grad_mask=batch.logp_grad_mask,
    ).token_logps
    inputs = batch.loss_inputs(token_logps)
    assert inputs.prompt_logps is not None
    mismatched = mismatched_logps(score, tensors)
    groups = batch.groups
    values = []
    for prompt in range(int(groups.max()) + 1):
        own = groups == prompt
        longest = int(tensors["attention_mask"][own].sum(-1).max())
        tokens = token_logps[own, :longest].flatten().float().cpu() if per_token else None
        responses = inputs.logps[own].cpu()
        kl = None if mismatched is None else mismatched[own].cpu()
        values.append(RowValues(float(inputs.prompt_logps[own][0]), responses, tokens, kl))
    return values


def mismatched_logps(score: Callable[..., Any], tensors: Mapping[str, Any]) -> Tensor | None:
    """Return ``[S]`` fp64 sums over the mismatched responses of a micro-batch; None without any.

    Args:
        score: a model with the fused head, called as one.
        tensors: what `data.Collator` returns.
    """
    batch: SequenceBatch | None = tensors.get("kl_sequences")
    if batch is None:
        return None
    targets = batch.logp_targets.masked_fill(~batch.logp_grad_mask, IGNORE)
    outputs = score(**model_inputs(tensors, "kl_"), logp_targets=targets)
    return batch.loss_inputs(outputs.token_logps).logps


def join_rows(values: list[RowValues]) -> ShardValues:
    """Join the values of consecutive records to one shard."""
    tokens = [row.tokens for row in values if row.tokens is not None]
    mismatched = [row.kl for row in values if row.kl is not None]
    return ShardValues(
        torch.tensor([row.prompt for row in values], dtype=torch.float64),
        torch.cat([row.responses for row in values]),
        torch.cat(tokens) if tokens else torch.zeros(0),
        torch.cat(mismatched) if mismatched else torch.zeros(0, dtype=torch.float64),
    )
