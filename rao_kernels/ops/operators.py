"""Register forward and backward as operators of torch: schemas, bodies, fakes, autograd.

The arguments and results of an operator are the fields of a named tuple below, the only place that
lists them: its schema is made from the fields, and every call, body and fake uses the tuple.

Legend: N rows, V vocabulary, D hidden size, K tiles.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from .. import _memory, backends, engine
from ..backends import Head, RowGradients
from ..errors import InputError, NotYetError
from . import row_selection

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


# Fields that forward saves for backward: of its arguments, tensors and others, and of its results.
_SAVED_INPUTS = ("hidden", "weight", "bias", "targets")
_CONSTANTS = ("scale", "softcap", "ignore_index", "compute_dtype", "grad_tolerance")
_SAVED_RESULTS = (
    "logp",
    "row_max",
    "log_sum",
    "entropy",
    "tile_mass",
    "order",
    "retained_tiles",
    "retained",
)


def _schema(arguments: type[tuple[Any, ...]], results: type[tuple[Any, ...]]) -> str:
    def listed(fields_of: type[tuple[Any, ...]]) -> str:
        fields = get_type_hints(fields_of).items()
        return ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in fields)

    return f"({listed(arguments)}) -> ({listed(results)})"


@torch.library.custom_op(
    "rao_kernels::linear_logprobs", mutates_args=(), schema=_schema(Forward, Results)
)
def linear_logprobs_op(*arguments: Any) -> Results:
    """Score the rows; see `Forward` and `Results`."""
    call = Forward(*arguments)
    hidden, targets = call.hidden, call.targets
    with torch.autocast(hidden.device.type, enabled=False):
        selection = row_selection.for_scoring(
            hidden, targets, call.ignore_index, call.weight.shape[0]
        )
        head = _head(call, selection)
        wanted = engine.Statistics(
            call.with_entropy, call.with_log_sum_sq_probs, call.with_mean_logits
        )
        plan = _plan(call, call.workspace_bytes)
        retained = _memory.empty((plan.workspace_bytes,), torch.uint8, hidden.device)
        order = _order(head, plan, call.vocab_order) if plan.sparse else None
        scores = engine.score(head, plan, wanted, retained, order)

    def spread(values: Tensor | None) -> Tensor:
        if values is None:
            return head.hidden.new_empty(0, dtype=plan.precision.accumulate)
        return row_selection.spread(values, selection, hidden.shape[0])

    return Results(
        logp=spread(scores.logp),
        row_max=spread(scores.row_max),
        log_sum=spread(scores.log_sum),
        is_top1=spread(scores.is_top1),
        entropy=spread(scores.entropy),
        log_sum_sq_probs=spread(scores.log_sum_sq_probs),
        mean_logits=spread(scores.mean_logits),
        tile_mass=spread(scores.tile_mass),
        order=targets.new_empty(0) if order is None else order,
        retained_tiles=targets.new_empty(0)
        if scores.retained_tiles is None
        else scores.retained_tiles,
        retained=retained,
    )


@linear_logprobs_op.register_fake
def _(*arguments: Any) -> Results:
    call = Forward(*arguments)
    plan = _plan(call, call.workspace_bytes)

    def rows(asked: bool, dtype: torch.dtype = plan.precision.accumulate) -> Tensor:
        return call.hidden.new_empty(plan.rows if asked else 0, dtype=dtype)

    mass_shape = (plan.rows, len(plan.tiles)) if plan.sparse else (0,)
    return Results(
        logp=rows(True),
        row_max=rows(True),
        log_sum=rows(True),
        is_top1=rows(True, torch.bool),
        entropy=rows(call.with_entropy),
        log_sum_sq_probs=rows(call.with_log_sum_sq_probs),
        mean_logits=rows(call.with_mean_logits),
        tile_mass=call.hidden.new_empty(mass_shape, dtype=plan.precision.accumulate),
        order=call.targets.new_empty(plan.vocabulary if plan.sparse else 0),
        retained_tiles=call.targets.new_empty(1 if plan.sparse else 0),
        retained=call.hidden.new_empty(plan.workspace_bytes, dtype=torch.uint8),
    )


@torch.library.custom_op(
    "rao_kernels::linear_logprobs_backward", mutates_args=(), schema=_schema(Backward, Gradients)
)
def linear_logprobs_backward_op(*arguments: Any) -> Gradients:
    """Differentiate the rows with an upstream gradient; see `Backward` and `Gradients`."""
    call = Backward(*arguments)
    hidden = call.hidden
    with torch.autocast(hidden.device.type, enabled=False):
        upstream = [
            gradient
            for gradient in (call.dlogp, call.dlog_sum, call.dentropy)
            if gradient is not None
        ]
        selection, scored = row_selection.for_gradients(upstream, call.targets, call.ignore_index)
        head = _head(call, selection)
        # The size of the retained buffer gives the plan of the forward pass again.
        plan = _plan(call, call.retained.numel())
        sparse = None
        if plan.sparse:
            index = selection.index
            mass = call.tile_mass if index is None else call.tile_mass[index]
            sparse = engine.Sparsity(call.order, mass, call.retained_tiles)
        needs = engine.Needs(call.need_dhidden, call.need_dweight, call.need_dbias)
        rows = _row_gradients(call, selection, head)
        out = engine.differentiate(head, plan, rows, call.retained, scored, needs, sparse)
    empty = hidden.new_empty
    dhidden, dbias = out.dhidden, out.dbias
    if dhidden is not None:
        dhidden = row_selection.spread(dhidden.to(hidden.dtype), selection, hidden.shape[0])
    if dbias is not None and call.bias is not None:
        dbias = dbias.to(call.bias.dtype)
    return Gradients(
        dhidden=empty(0) if dhidden is None else dhidden,
        dweight=empty(0) if out.dweight is None else out.dweight,
        dbias=empty(0) if dbias is None else dbias,
    )


@linear_logprobs_backward_op.register_fake
def _(*arguments: Any) -> Gradients:
    call = Backward(*arguments)

    def like(tensor: Tensor | None, needed: bool) -> Tensor:
        if tensor is None or not needed:
            return call.hidden.new_empty(0)
        return tensor.new_empty(tensor.shape)

    return Gradients(
        dhidden=like(call.hidden, call.need_dhidden),
        dweight=like(call.weight, call.need_dweight),
        dbias=like(call.bias, call.need_dbias),
    )


def _plan(call: Forward | Backward, workspace_bytes: int | None) -> engine.Plan:
    """Make the plan of a call from what real and fake tensors both know: no row is selected yet."""
    device, dtype = call.hidden.device, call.compute_dtype
    return engine.make_plan(
        call.hidden.shape[0],
        call.weight.shape[0],
        call.weight.shape[1],
        dtype,
        backend=backends.select(call.backend or None, device, dtype),
        device_type=device.type,
        workspace_bytes=workspace_bytes,
        softcap=call.softcap,
        tolerance=call.grad_tolerance,
    )


def _order(head: Head, plan: engine.Plan, vocab_order: Tensor | None) -> Tensor:
    """Check and copy the caller's order, or estimate one from the rows of the call."""
    vocabulary = plan.vocabulary
    if vocab_order is None:
        return engine.order_by_sample(head, plan.width, plan.tolerance)
    inside = (vocab_order >= 0) & (vocab_order < vocabulary)
    seen = torch.zeros_like(inside)
    seen[vocab_order.clamp(0, vocabulary - 1)] = True
    if not bool((seen & inside).all()):  # one read on the host
        raise InputError(
            "vocab_order",
            f"each of 0 to {vocabulary - 1} once",
            "repeated, missing or other values",
        )
    return vocab_order.clone()


def _head(call: Forward | Backward, selection: row_selection.Selection) -> Head:
    hidden, targets = call.hidden, call.targets
    if selection.index is not None:
        hidden, targets = hidden[selection.index], targets[selection.index]
    hidden = hidden.to(call.compute_dtype).contiguous()
    return Head(hidden, call.weight, call.bias, targets.contiguous(), call.scale, call.softcap)


def _row_gradients(call: Backward, selection: row_selection.Selection, head: Head) -> RowGradients:
    """Combine the upstream gradients: ``dH/dz_v = -p_v (log p_v + H)``, ``dlse/dz_v = p_v``."""

    def taken(values: Tensor) -> Tensor:
        values = values if selection.index is None else values[selection.index]
        return values.to(head.accumulator).contiguous()

    logp = taken(call.logp)
    p_factor = p_log_p_factor = None
    if call.dlog_sum is not None or call.dentropy is not None:
        p_factor, p_log_p_factor = torch.zeros_like(logp), torch.zeros_like(logp)
        if call.dlog_sum is not None:
            p_factor += taken(call.dlog_sum)
        if call.dentropy is not None:
            p_log_p_factor -= taken(call.dentropy)
            p_factor += p_log_p_factor * taken(call.entropy)
    return RowGradients(
        row_max=taken(call.row_max),
        log_sum=taken(call.log_sum),
        logp=logp,
        logp_grad=torch.zeros_like(logp) if call.dlogp is None else taken(call.dlogp),
        p_factor=p_factor,
        p_log_p_factor=p_log_p_factor,
        retained_row=selection.scored_row,
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call, results = Forward(*inputs), Results(*output)
    ctx.save_for_backward(
        *(getattr(call, name) for name in _SAVED_INPUTS),
        *(getattr(results, name) for name in _SAVED_RESULTS),
    )
    ctx.constants = {name: getattr(call, name) for name in _CONSTANTS}
    # The backend that ran: the layout of what it retained and the widths of its tiles are its own.
    ctx.backend = backends.select(call.backend or None, call.hidden.device, call.compute_dtype)
    differentiable = {"logp", "log_sum", "entropy"}
    ctx.mark_non_differentiable(
        *(values for name, values in results._asdict().items() if name not in differentiable)
    )
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise NotYetError("linear_logprobs has no second derivative; use create_graph=False")
    by_result = dict(zip(Results._fields, upstream, strict=True))
    dlogp, dlog_sum, dentropy = (by_result[name] for name in ("logp", "log_sum", "entropy"))
    gradients: dict[str, Tensor | None] = {}
    if dlogp is not None or dlog_sum is not None or dentropy is not None:
        needed = dict(zip(Forward._fields, ctx.needs_input_grad, strict=True))
        saved = dict(zip((*_SAVED_INPUTS, *_SAVED_RESULTS), ctx.saved_tensors, strict=True))
        call = Backward(
            dlogp=dlogp,
            dlog_sum=dlog_sum,
            dentropy=dentropy,
            **saved,
            **ctx.constants,
            backend=ctx.backend,
            need_dhidden=needed["hidden"],
            need_dweight=needed["weight"],
            need_dbias=needed["bias"],
        )
        found = Gradients(*linear_logprobs_backward_op(*call))
        gradients = {
            "hidden": found.dhidden if call.need_dhidden else None,
            "weight": found.dweight if call.need_dweight else None,
            "bias": found.dbias if call.need_dbias else None,
        }
    return tuple(gradients.get(name) for name in Forward._fields)


linear_logprobs_op.register_autograd(_backward, setup_context=_setup_context)
