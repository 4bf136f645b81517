"""Arguments and results of the operators, as named tuples.

Their fields are the only place that lists them: the schema of an operator is made from the fields,
and every call, body and fake uses the tuple.

Legend: N rows, V vocabulary, D hidden size, K tiles.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    float: "float",
    float | None: "float?",
    int | None: "int?",
    bool: "bool",
    str: "str",
    torch.dtype: "ScalarType",
}


class Forward(NamedTuple):
    """Arguments of the forward operator.

    hidden: ``[N, D]``. weight: ``[V, D]``. bias: ``[V]``. targets: ``[N]`` int64.
    ignore_index: target of rows to leave out; None trusts all rows. compute_dtype: of the products.
    workspace_bytes, grad_tolerance, vocab_order, backend: see `EngineOptions`; "" is the best
    backend. with_*: optional statistics to collect.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    scale: float
    softcap: float | None
    ignore_index: int | None
    compute_dtype: torch.dtype
    grad_tolerance: float
    vocab_order: Tensor | None
    workspace_bytes: int | None
    backend: str
    with_entropy: bool
    with_log_sum_sq_probs: bool
    with_mean_logits: bool
    with_is_top1: bool


class Results(NamedTuple):
    """Results of the forward operator.

    The first seven ``[N]``, zero elements where not asked for. tile_mass: ``[N, K]`` probability
    mass of the K tiles. order: ``[V]`` the vocabulary in the order of the walk. retained_tiles:
    ``[1]``, how many tiles lie in `retained`. These three have zero elements where `grad_tolerance`
    is 0. retained: `Plan.workspace_bytes` flat bytes; unused ones are 0, or uninitialised where
    there are many.
    """

    logp: Tensor
    row_max: Tensor
    log_sum: Tensor
    is_top1: Tensor
    entropy: Tensor
    log_sum_sq_probs: Tensor
    mean_logits: Tensor
    tile_mass: Tensor
    order: Tensor
    retained_tiles: Tensor
    retained: Tensor


class Backward(NamedTuple):
    """Arguments of the backward operator: upstream gradients, arguments and results of forward.

    dlog_sum: gradient of the log-sum-exp. need_*: which gradients to compute.
    backend: the one that forward ran on, as the layout of what it retained is its own.
    """

    dlogp: Tensor | None
    dlog_sum: Tensor | None
    dentropy: Tensor | None
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    logp: Tensor
    row_max: Tensor
    log_sum: Tensor
    entropy: Tensor
    tile_mass: Tensor
    order: Tensor
    retained_tiles: Tensor
    retained: Tensor
    scale: float
    softcap: float | None
    ignore_index: int | None
    compute_dtype: torch.dtype
    grad_tolerance: float
    backend: str
    need_dhidden: bool
    need_dweight: bool
    need_dbias: bool


class Gradients(NamedTuple):
    """Results of the backward operator, each in its tensor's dtype, zero elements if not needed."""

    dhidden: Tensor
    dweight: Tensor
    dbias: Tensor


def schema_of(arguments: type[tuple[Any, ...]], results: type[tuple[Any, ...]]) -> str:
    """Return the schema of an operator with these arguments and results."""

    def listed(fields_of: type[tuple[Any, ...]]) -> str:
        fields = get_type_hints(fields_of).items()
        return ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in fields)

    return f"({listed(arguments)}) -> ({listed(results)})"
