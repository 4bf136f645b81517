"""Units of a micro-batch, and means of metrics over micro-batches and ranks.

Nothing is read on the host except when metrics are logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data import first_prompts
from ..losses import CombinedLoss, Loss, LossInputs, reduce_units
from ..sequence import SequenceBatch
from ..types import LossOutput

if TYPE_CHECKING:
    from accelerate import Accelerator

Reduce = Callable[[Tensor, str], Tensor]


class Meter:
    """Collects weighted scalars on the device, and returns their means.

    A name that ends in ``_max`` is a maximum. A ``_std`` beside a ``_mean`` of the same stem is
    pooled: the standard deviation over everything seen, not the mean of the parts'.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    def update(self, metrics: Mapping[str, Tensor], weight: Tensor) -> None:
        """Add scalars that are means over `weight` units; a weight of 0 adds nothing."""
        for name, value in metrics.items():
            value = value.detach().double()
            if name.endswith("_max"):
                lowest = torch.full_like(value, -torch.inf)
                value = torch.where(weight > 0, value, lowest)
                self._maxima[name] = torch.maximum(self._maxima.get(name, lowest), value)
                continue
            if _mean_of(name) in metrics:
                value = value.square() + metrics[_mean_of(name)].detach().double().square()
            share = torch.where(weight > 0, value * weight, 0.0)
            pair = torch.stack([share, weight.double()])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def pop(self, reduce: Reduce) -> dict[str, float]:
        """Return means and maxima since the last call.

        reduce: ``reduce(tensor, "sum" | "max")`` joins the values of all ranks.
        """
        names, maxima = sorted(self._sums), sorted(self._maxima)
        result: dict[str, float] = {}
        if names:
            sums = reduce(torch.stack([self._sums[name] for name in names]), "sum").tolist()
            result |= {name: s / w for name, (s, w) in zip(names, sums, strict=True) if w > 0}
        if maxima:
            values = reduce(torch.stack([self._maxima[name] for name in maxima]), "max").tolist()
            result |= dict(zip(maxima, values, strict=True))
        self._sums, self._maxima = {}, {}
        for name in result:
            if _mean_of(name) in result:
                variance = result[name] - result[_mean_of(name)] ** 2
                result[name] = max(variance, 0.0) ** 0.5
        return result


def _mean_of(name: str) -> str:
    """Return the name of the mean that a standard deviation belongs to; "" for other metrics."""
    return f"{name.removesuffix('_std')}_mean" if name.endswith("_std") else ""


def count_units(spec: Loss, batch: Mapping[str, Any]) -> Tensor:
    """Count the units of a loss in a collated micro-batch, before any forward."""
    sequences: SequenceBatch = batch["sequences"]
    unknown = torch.zeros(sequences.response_rows.shape, device=sequences.response_rows.device)
    inputs = sequences.row_loss_inputs(
        unknown, None, preferred=batch.get("preferred"), rewards=batch.get("rewards")
    )
    return spec.count_units(inputs)


def record(
    meter: Meter,
    loss: Loss,
    inputs: LossInputs,
    output: LossOutput,
    seen: Tensor | int,
    *,
    with_loss: bool,
) -> None:
    """Add a micro-batch's metrics to `meter`, weighted by the units of the loss they are of.

    If two losses of a sum have a metric of one name, the first one's is kept.

    Args:
        seen: 0 if the micro-batch only repeats prompts and must not count, else 1.
        with_loss: add the mean of the loss too. Those of a sum's parts are always added.
    """
    outputs = output.parts or (output,)
    known: set[str] = set()
    for (spec, _), own in zip(loss.bound_parts({}), outputs, strict=True):
        metrics = {name: value for name, value in own.metrics.items() if name not in known}
        known |= set(metrics)
        if output.parts or with_loss:
            name = f"loss/{spec.name}" if output.parts else "loss"
            metrics[name] = reduce_units(own.values.double(), spec.weights(inputs), None)
        meter.update(metrics, spec.count_units(inputs) * seen)


def token_stats(sequences: SequenceBatch, outputs: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Return entropy and accuracy as means over the response tokens, and the number of these.

    outputs: a `FusedLMOutput` with `entropy` and `is_top1`.
    """
    rows = sequences.response_rows
    count = rows.new_full((), len(rows))
    named = {"entropy": outputs.entropy.detach(), "mean_token_accuracy": outputs.is_top1}
    sums = {name: value.reshape(-1)[rows].sum() for name, value in named.items()}
    return {name: total / count.clamp(min=1) for name, total in sums.items()}, count


def total_loss(loss: Loss, means: Mapping[str, float]) -> dict[str, float]:
    """Return `means`; of a sum of losses add the total, the weighted sum of its parts' means."""
    if not isinstance(loss, CombinedLoss):
        return dict(means)
    total = sum(weight * means.get(f"loss/{spec.name}", 0.0) for spec, weight in loss.parts)
    return {"loss": total, **means}


def drop_repeated(batch: dict[str, Any], accelerator: Accelerator, size: int) -> dict[str, Any]:
    """Drop from an epoch's last micro-batch the prompts that another one of the epoch holds.

    accelerate fills the last round of micro-batches, so that every rank gets a full one, with
    prompts from the beginning. A rank that got nothing else keeps one of them, for it must take
    part in the step; "fresh" is then False, and the micro-batch is given the weight 0.

    Reads the batch on the host, once per epoch and only on several ranks.

    Args:
        size: prompts of a rank's micro-batch. accelerate's own `remainder` is unknown where it
            skips the micro-batches before a checkpoint.
    """
    state, ranks = accelerator.gradient_state, accelerator.num_processes
    if ranks == 1 or not state.end_of_dataloader:
        return batch
    remainder = len(state.active_dataloader.dataset) % (size * ranks)
    if not remainder:
        return batch
    groups = batch["sequences"].groups
    fresh = remainder - accelerator.process_index * size
    fresh_mark = torch.tensor(fresh > 0, device=groups.device)
    return first_prompts(batch, max(fresh, 1)) | {"fresh": fresh_mark}
