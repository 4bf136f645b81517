"""Data classes that a backend's two tile operations take.

Legend: N rows of the pass, V vocabulary, D hidden size, W entries of a tile, G = `GROUP`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 256  # entries of a `RetainedTile` that share one maximum


class Precision(NamedTuple):
    """Dtypes of a pass.

    product: of the operands of every matrix product. accumulate: of their sums, of the row
    statistics and of accumulated gradients. retained: of the logits kept from forward to backward.
    dz: of the logit gradient, an operand of backward's products.
    """

    product: torch.dtype
    accumulate: torch.dtype
    retained: torch.dtype
    dz: torch.dtype


@cache
def precision_of(dtype: torch.dtype) -> Precision:
    """Return the precision of a pass whose operands have this dtype."""
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    return Precision(product=dtype, accumulate=accumulate, retained=dtype, dz=dtype)


GPU_WORKSPACE_CAP = 5 << 29  # 2.5 GiB; bf16 logits of 8,192 rows and 131,072 entries are 2.02


@dataclass(frozen=True)
class Traits:
    """Properties of a backend on a device that the plan of a call depends on.

    dense_width: vocabulary entries of a tile. sparse_width: the same for a sparse backward, which
    skips more with narrower tiles. writes_dhidden: the only tile of a pass can write dhidden
    rounded to its final dtype, which spares zeroing, adding and rounding. retained_cost: time of
    writing and reading a retained logit, in multiply-adds of a product; 0: it is not counted.
    widest: width up to which dense tiles of few rows are doubled, because launching many small
    kernels takes longer than their work; 0: never. workspace_cap: bytes of logits that are retained
    at most where the caller sets no limit.
    """

    dense_width: int
    sparse_width: int
    retained_cost: int
    widest: int = 0
    writes_dhidden: bool = False
    workspace_cap: int = 1 << 30


class Tile(NamedTuple):
    """Positions ``start:stop`` of the walk over the vocabulary.

    entries: ``[W]`` int64, the vocabulary entry at each position; None: position i is entry i.
    """

    start: int
    stop: int
    entries: Tensor | None = None

    @property
    def width(self) -> int:
        return self.stop - self.start

    @property
    def groups(self) -> int:
        return -(-self.width // GROUP)

    def of(self, table: Tensor) -> Tensor:
        """Return the rows of ``[V, ...]`` that belong to the tile: a view if `entries` is None."""
        if self.entries is None:
            return table[self.start : self.stop]
        return table.index_select(0, self.entries)

    def put(self, table: Tensor, rows: Tensor) -> None:
        """Write `rows`, rounded to its dtype, to the rows of `table` that belong to the tile."""
        if self.entries is None:
            table[self.start : self.stop] = rows
        else:
            table[self.entries] = rows.to(table.dtype)


@dataclass(frozen=True)
class Head:
    """The inputs of a pass over the head: the selected rows, and what turns them into logits.

    ``logits = softcap * tanh((hidden @ weight.T + bias) / softcap) * scale``

    hidden: ``[N, D]`` contiguous, in the dtype the products are computed in.
    weight: ``[V, D]``, any float dtype and strides. bias: ``[V]`` or None. targets: ``[N]`` int64,
    positions of the walk.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    scale: float
    softcap: float | None

    @property
    def rows(self) -> int:
        return self.hidden.shape[0]

    @property
    def precision(self) -> Precision:
        """Dtypes of a pass over this head."""
        return precision_of(self.hidden.dtype)

    @property
    def accumulator(self) -> torch.dtype:
        """Dtype of statistics and accumulated gradients."""
        return self.precision.accumulate

    def weight_tile(self, tile: Tile) -> Tensor:
        """Return ``[W, D]``, contiguous, in the dtype of the products; a copy only if needed."""
        return tile.of(self.weight).to(self.precision.product).contiguous()

    def bias_tile(self, tile: Tile) -> Tensor | None:
        """Return the tile's bias ``[W]`` in the accumulator dtype."""
        if self.bias is None:
            return None
        return tile.of(self.bias).to(self.accumulator).contiguous()


@dataclass(frozen=True)
class RowState:
    """Running statistics of N rows over the tiles scored so far, in the accumulator dtype.

    row_max: -inf before the first tile. row_sum: sum of ``e = exp(z - row_max)``. target_logit: NaN
    until the target's tile is scored. Optional: entropy_sum, sum of ``e (z - row_max)``;
    sum_sq_probs, sum of ``e^2``; logit_sum, sum of ``z``.
    """

    row_max: Tensor
    row_sum: Tensor
    target_logit: Tensor
    entropy_sum: Tensor | None
    sum_sq_probs: Tensor | None
    logit_sum: Tensor | None

    def reset(self) -> None:
        """Write the statistics of no tile."""
        self.row_max.fill_(-torch.inf)
        self.target_logit.fill_(torch.nan)
        for total in (self.row_sum, self.entropy_sum, self.sum_sq_probs, self.logit_sum):
            if total is not None:
                total.zero_()


@dataclass(frozen=True)
class RetainedSlot:
    """Memory in which a backend retains one tile for backward, in a layout of its own.

    memory: flat uint8 of the backend's `retained_bytes`, aligned to 64 bytes; `score_tile` writes
    all of it. rows: of the pass that retained the tile.
    """

    memory: Tensor
    rows: int


def grouped_bytes(rows: int, width: int, precision: Precision) -> int:
    """Return the bytes of a `RetainedTile` of so many rows and vocabulary entries."""
    groups = -(-width // GROUP)
    return groups * rows * (GROUP * precision.retained.itemsize + precision.accumulate.itemsize)


@dataclass(frozen=True)
class RetainedTile:
    """A tile's logits, kept for backward, group by group: the layout that several backends share.

    Logits and not products: a softcap's derivative magnifies an error of its argument, but follows
    from its result, which is bounded, with the error of that.

    values: ``[ceil(W / G), N, G]`` in the retained dtype: logit minus the maximum of the row's
    group, or minus 0 where all are -inf; values beyond the W entries of the tile are not used.
    maxima: ``[ceil(W / G), N]`` in the accumulator dtype; in a slot directly behind the values.
    """

    values: Tensor
    maxima: Tensor

    @classmethod
    def on(cls, slot: RetainedSlot, tile: Tile, precision: Precision) -> RetainedTile:
        """Return a view of a slot of `grouped_bytes`."""
        shape = (tile.groups, slot.rows, GROUP)
        end = prod(shape) * precision.retained.itemsize
        values = slot.memory[:end].view(precision.retained)
        maxima = slot.memory[end:].view(precision.accumulate)
        return cls(values.view(shape), maxima.view(shape[:2]))


@dataclass(frozen=True)
class RowGradients:
    """Per-row numbers that turn probabilities into the gradient of the logits.

    ``dz_v = logp_grad (onehot_v - p_v) + p_v (p_factor + p_log_p_factor log p_v)`` with
    ``p = exp((z - row_max) - log_sum)``; at the target, ``p`` and ``1 - p`` come from `logp`.

    All ``[N]`` in the accumulator dtype. `p_factor` and `p_log_p_factor` are both None where
    neither the entropy nor the lse has a gradient. retained_row: ``[N]`` int64, the row of a
    retained tile that belongs to each row of the pass; None: the same row.
    """

    row_max: Tensor
    log_sum: Tensor
    logp: Tensor
    logp_grad: Tensor
    p_factor: Tensor | None
    p_log_p_factor: Tensor | None
    retained_row: Tensor | None


@dataclass(frozen=True)
class Gradients:
    """The outputs of a backward pass; None: not wanted.

    dhidden: ``[N, D]`` in the accumulator dtype, added to; with `single_tile` uninitialised and in
    the dtype of the products or of their sums: the only tile of the pass writes it. dhidden_row:
    the row of `dhidden` that belongs to each row of the pass; None: the same row. dweight: ``[V,
    D]`` in the dtype of the weight; each tile writes its rows once. dbias: ``[V]`` in the
    accumulator dtype, likewise. unscale: 0-dim factor that `dweight` and `dbias` are multiplied
    with before they are rounded (the inverse of the factor the row gradients were scaled by), or
    None for 1.
    """

    dhidden: Tensor | None
    dweight: Tensor | None
    dbias: Tensor | None
    unscale: Tensor | None
    dhidden_row: Tensor | None = None
    single_tile: bool = False
