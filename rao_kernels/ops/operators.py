"""Register forward and backward as operators of torch: bodies, fakes, autograd.

They are registered twice, with the same bodies: as operators that may read on the host (to select
rows, or for a sparse backward), which a CUDA graph must leave out, and as "trusted" ones for calls
that read nothing, which a CUDA graph can hold. An operator's tags are fixed, so one operator could
not be both.

Legend: N rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _memory, backends, engine
from ..backends import Head, RowGradients
from ..errors import InputError, NotYetError
from . import row_selection
from .signatures import Backward, Forward, Gradients, Results, schema_of

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

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


def score(*arguments: Any) -> Results:
    """Score the rows; see `Forward` and `Results`."""
    call = Forward(*arguments)
    hidden, targets = call.hidden, call.targets
    with torch.autocast(hidden.device.type, enabled=False):
        selection = row_selection.for_scoring(
            hidden, targets, call.ignore_index, call.weight.shape[0]
        )
        head = _head(call, selection)
        wanted = engine.Statistics(
            call.with_entropy, call.with_log_sum_sq_probs, call.with_mean_logits, call.with_is_top1
        )
        plan = _plan(call, call.workspace_bytes)
        retained = _memory.empty((plan.workspace_bytes,), torch.uint8, hidden.device)
        order = _order(head, plan, call.vocab_order) if plan.sparse else None
        scores = engine.score(head, plan, wanted, retained, order)

    def spread(values: Tensor | None, dtype: torch.dtype = plan.precision.accumulate) -> Tensor:
        if values is None:
            return hidden.new_empty(0, dtype=dtype)
        return row_selection.spread(values, selection, hidden.shape[0])

    return Results(
        logp=spread(scores.logp),
        row_max=spread(scores.row_max),
        log_sum=spread(scores.log_sum),
        is_top1=spread(scores.is_top1, torch.bool),
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


def fake_score(*arguments: Any) -> Results:
    """Return results of the shapes and dtypes of `score`."""
    call = Forward(*arguments)
    plan = _plan(call, call.workspace_bytes)

    def rows(asked: bool, dtype: torch.dtype = plan.precision.accumulate) -> Tensor:
        return call.hidden.new_empty(plan.rows if asked else 0, dtype=dtype)

    mass_shape = (plan.rows, len(plan.tiles)) if plan.sparse else (0,)
    return Results(
        logp=rows(True),
        row_max=rows(True),
        log_sum=rows(True),
        is_top1=rows(call.with_is_top1, torch.bool),
        entropy=rows(call.with_entropy),
        log_sum_sq_probs=rows(call.with_log_sum_sq_probs),
        mean_logits=rows(call.with_mean_logits),
        tile_mass=call.hidden.new_empty(mass_shape, dtype=plan.precision.accumulate),
        order=call.targets.new_empty(plan.vocabulary if plan.sparse else 0),
        retained_tiles=call.targets.new_empty(1 if plan.sparse else 0),
        retained=call.hidden.new_empty(plan.workspace_bytes, dtype=torch.uint8),
    )


def differentiate(*arguments: Any) -> Gradients:
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
        dhidden_dtype = hidden.dtype if call.need_dhidden else None
        needs = engine.Needs(dhidden_dtype, call.need_dweight, call.need_dbias)
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


def fake_differentiate(*arguments: Any) -> Gradients:
    """Return gradients of the shapes and dtypes of `differentiate`."""
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
        tolerance=call.grad_tolerance,
        weight_dtype=call.weight.dtype,
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


def _backward(
    operator: CustomOpDef, ctx: Any, *upstream: Tensor | None
) -> tuple[Tensor | None, ...]:
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
        found = Gradients(*operator(*call))
        gradients = {
            "hidden": found.dhidden if call.need_dhidden else None,
            "weight": found.dweight if call.need_dweight else None,
            "bias": found.dbias if call.need_dbias else None,
        }
    return tuple(gradients.get(name) for name in Forward._fields)


def _registered(name: str, tags: tuple[torch.Tag, ...]) -> tuple[CustomOpDef, CustomOpDef]:
    """Register forward and backward under a name; return both operators."""
    forward = torch.library.custom_op(
        f"rao_kernels::{name}",
        score,
        mutates_args=(),
        schema=schema_of(Forward, Results),
        tags=tags,
    )
    backward = torch.library.custom_op(
        f"rao_kernels::{name}_backward",
        differentiate,
        mutates_args=(),
        schema=schema_of(Backward, Gradients),
        tags=tags,
    )
    forward.register_fake(fake_score)
    backward.register_fake(fake_differentiate)
    forward.register_autograd(partial(_backward, backward), setup_context=_setup_context)
    return forward, backward


linear_logprobs_op, linear_logprobs_backward_op = _registered(
    "linear_logprobs", (torch.Tag.cudagraph_unsafe,)
)
trusted_op, trusted_backward_op = _registered("linear_logprobs_trusted", ())


def run(call: Forward) -> Results:
    """Run the operator for a call: the trusted one where neither pass reads on the host."""
    trusted = call.ignore_index is None and call.grad_tolerance == 0.0
    operator = trusted_op if trusted else linear_logprobs_op
    return Results(*operator(*call))
