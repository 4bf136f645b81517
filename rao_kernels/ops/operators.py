"""Forward and backward as operators of torch: schemas, bodies, fakes, and their autograd.

Legend: N rows, V vocabulary, D hidden size, K tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _memory, backends, engine
from ..backends import Head, RowGradients
from ..errors import InputError, NotYetError
from . import rows as row_selection


@torch.library.custom_op("rao_kernels::linear_logprobs", mutates_args=())
def linear_logprobs_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    softcap: float | None,
    ignore_index: int | None,
    workspace_bytes: int | None,
    compute_dtype: torch.dtype,
    with_entropy: bool,
    with_square_sum: bool,
    with_mean: bool,
    grad_tolerance: float,
    word_order: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(logp, row_max, log_sum, is_top1, entropy, log_sum_sq_probs, mean_logits, tile_mass, order,
    retained_tiles, retained).

    The first seven ``[N]``, zero elements where not asked. tile_mass ``[N, K]`` of the K tiles,
    order ``[V]``, the vocabulary in the order of the walk, and retained_tiles ``[1]``, how many
    tiles lie in `retained`, where `grad_tolerance` is above 0, else zero elements. retained:
    `Plan.workspace_bytes` flat bytes; what holds nothing is 0, or uninitialised where it is long.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        selection = row_selection.for_scoring(hidden, targets, ignore_index, weight.shape[0])
        head = _head(hidden, weight, bias, targets, scale, softcap, compute_dtype, selection)
        wanted = engine.Statistics(with_entropy, with_square_sum, with_mean)
        plan = _plan(
            hidden, weight, softcap, workspace_bytes, compute_dtype, grad_tolerance, backend
        )
        retained = _memory.empty((plan.workspace_bytes,), torch.uint8, hidden.device)
        order = _order(head, plan, word_order) if plan.sparse else None
        scores = engine.score(head, plan, wanted, retained, order)
        per_row = (
            scores.logp,
            scores.row_max,
            scores.log_sum,
            scores.is_top1,
            scores.entropy,
            scores.log_sum_sq_probs,
            scores.mean_logits,
            scores.tile_mass,
        )
        a, b, c, d, e, f, g, tile_mass = (
            head.hidden.new_empty(0, dtype=plan.precision.accumulate)
            if values is None
            else row_selection.spread(values, selection, hidden.shape[0])
            for values in per_row
        )
        order, retained_tiles = (
            targets.new_empty(0) if values is None else values
            for values in (order, scores.retained_tiles)
        )
        return a, b, c, d, e, f, g, tile_mass, order, retained_tiles, retained


@linear_logprobs_op.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    softcap: float | None,
    ignore_index: int | None,
    workspace_bytes: int | None,
    compute_dtype: torch.dtype,
    with_entropy: bool,
    with_square_sum: bool,
    with_mean: bool,
    grad_tolerance: float,
    word_order: Tensor | None,
    backend: str,
) -> tuple[Tensor, ...]:
    def rows(asked: bool, dtype: torch.dtype) -> Tensor:
        return hidden.new_empty(hidden.shape[0] if asked else 0, dtype=dtype)

    plan = _plan(hidden, weight, softcap, workspace_bytes, compute_dtype, grad_tolerance, backend)
    statistics, sparse = plan.precision.accumulate, plan.sparse
    return (
        rows(True, statistics),
        rows(True, statistics),
        rows(True, statistics),
        rows(True, torch.bool),
        rows(with_entropy, statistics),
        rows(with_square_sum, statistics),
        rows(with_mean, statistics),
        hidden.new_empty((plan.rows, len(plan.tiles)) if sparse else 0, dtype=statistics),
        targets.new_empty(plan.vocabulary if sparse else 0),
        targets.new_empty(1 if sparse else 0),
        hidden.new_empty(plan.workspace_bytes, dtype=torch.uint8),
    )


@torch.library.custom_op("rao_kernels::linear_logprobs_backward", mutates_args=())
def linear_logprobs_backward_op(
    dlogp: Tensor | None,
    dlog_sum: Tensor | None,
    dentropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logp: Tensor,
    row_max: Tensor,
    log_sum: Tensor,
    entropy: Tensor,
    tile_mass: Tensor,
    order: Tensor,
    retained_tiles: Tensor,
    retained: Tensor,
    scale: float,
    softcap: float | None,
    ignore_index: int | None,
    compute_dtype: torch.dtype,
    grad_tolerance: float,
    need_dhidden: bool,
    need_dweight: bool,
    need_dbias: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dhidden, dweight, dbias), each in its tensor's dtype, zero elements where not needed.

    dlog_sum is the gradient of the log-sum-exp.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        upstream = [gradient for gradient in (dlogp, dlog_sum, dentropy) if gradient is not None]
        selection, scored = row_selection.for_gradients(upstream, targets, ignore_index)
        head = _head(hidden, weight, bias, targets, scale, softcap, compute_dtype, selection)
        rows = _row_gradients(
            dlogp, dlog_sum, dentropy, logp, row_max, log_sum, entropy, selection, head
        )
        needs = engine.Needs(need_dhidden, need_dweight, need_dbias)
        # From the size of the retained buffer the plan of the forward pass results again.
        plan = _plan(
            hidden, weight, softcap, retained.numel(), compute_dtype, grad_tolerance, backend
        )
        sparse = None
        if plan.sparse:
            mass = tile_mass if selection.index is None else tile_mass[selection.index]
            sparse = engine.Sparsity(order, mass, retained_tiles)
        out = engine.differentiate(head, plan, rows, retained, scored, needs, sparse)
        empty = hidden.new_empty(0)
        dhidden = dweight = dbias = None
        if out.dhidden is not None:
            dhidden = row_selection.spread(out.dhidden.to(hidden.dtype), selection, hidden.shape[0])
        if out.dweight is not None:
            dweight = out.dweight
        if out.dbias is not None and bias is not None:
            dbias = out.dbias.to(bias.dtype)
        return (
            empty if dhidden is None else dhidden,
            empty.clone() if dweight is None else dweight,
            empty.clone() if dbias is None else dbias,
        )


@linear_logprobs_backward_op.register_fake
def _(
    dlogp: Tensor | None,
    dlog_sum: Tensor | None,
    dentropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logp: Tensor,
    row_max: Tensor,
    log_sum: Tensor,
    entropy: Tensor,
    tile_mass: Tensor,
    order: Tensor,
    retained_tiles: Tensor,
    retained: Tensor,
    scale: float,
    softcap: float | None,
    ignore_index: int | None,
    compute_dtype: torch.dtype,
    grad_tolerance: float,
    need_dhidden: bool,
    need_dweight: bool,
    need_dbias: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    def like(tensor: Tensor | None, needed: bool) -> Tensor:
        if tensor is None or not needed:
            return hidden.new_empty(0)
        return tensor.new_empty(tensor.shape)

    return like(hidden, need_dhidden), like(weight, need_dweight), like(bias, need_dbias)


def _plan(
    hidden: Tensor,
    weight: Tensor,
    softcap: float | None,
    workspace_bytes: int | None,
    compute_dtype: torch.dtype,
    grad_tolerance: float,
    backend: str,
) -> engine.Plan:
    """The plan of a call, from what real and fake tensors both know: no row is selected yet."""
    return engine.make_plan(
        hidden.shape[0],
        weight.shape[0],
        weight.shape[1],
        compute_dtype,
        backend=backends.select(backend or None, hidden.device, compute_dtype),
        device_type=hidden.device.type,
        workspace_bytes=workspace_bytes,
        softcap=softcap,
        tolerance=grad_tolerance,
    )


def _order(head: Head, plan: engine.Plan, word_order: Tensor | None) -> Tensor:
    """The caller's order, checked, or one learnt from the rows at hand; a copy either way."""
    vocabulary = plan.vocabulary
    if word_order is None:
        return engine.order_by_sample(head, plan.width, plan.tolerance)
    inside = (word_order >= 0) & (word_order < vocabulary)
    seen = torch.zeros_like(inside)
    seen[word_order.clamp(0, vocabulary - 1)] = True
    if not bool((seen & inside).all()):  # one read on the host
        raise InputError("word_order", f"each of 0 to {vocabulary - 1} once", "another sequence")
    return word_order.clone()


def _head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    softcap: float | None,
    compute_dtype: torch.dtype,
    selection: row_selection.Selection,
) -> Head:
    if selection.index is not None:
        hidden, targets = hidden[selection.index], targets[selection.index]
    hidden = hidden.to(compute_dtype).contiguous()
    return Head(hidden, weight, bias, targets.contiguous(), scale, softcap)


def _row_gradients(
    dlogp: Tensor | None,
    dlog_sum: Tensor | None,
    dentropy: Tensor | None,
    logp: Tensor,
    row_max: Tensor,
    log_sum: Tensor,
    entropy: Tensor,
    selection: row_selection.Selection,
    head: Head,
) -> RowGradients:
    """``dH/dz_v = -p_v (log p_v + H)`` and ``dlse/dz_v = p_v``."""

    def taken(values: Tensor) -> Tensor:
        values = values if selection.index is None else values[selection.index]
        return values.to(head.accumulator).contiguous()

    logp = taken(logp)
    mass_grad = log_mass_grad = None
    if dlog_sum is not None or dentropy is not None:
        mass_grad, log_mass_grad = torch.zeros_like(logp), torch.zeros_like(logp)
        if dlog_sum is not None:
            mass_grad += taken(dlog_sum)
        if dentropy is not None:
            log_mass_grad -= taken(dentropy)
            mass_grad += log_mass_grad * taken(entropy)
    return RowGradients(
        row_max=taken(row_max),
        log_sum=taken(log_sum),
        logp=logp,
        logp_grad=torch.zeros_like(logp) if dlogp is None else taken(dlogp),
        p_factor=mass_grad,
        p_log_p_factor=log_mass_grad,
        retained_row=selection.scored_row,
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    hidden, weight, bias, targets, scale, softcap, ignore_index, _, compute_dtype, *_ = inputs
    *_, grad_tolerance, _, backend = inputs
    logp, row_max, log_sum, is_top1, entropy, log_sum_sq, mean, *sparse_and_retained = output
    saved = (logp, row_max, log_sum, entropy, *sparse_and_retained)
    ctx.save_for_backward(hidden, weight, bias, targets, *saved)
    ctx.constants = (scale, softcap, ignore_index, compute_dtype, grad_tolerance)
    # The one that ran: what it retained has its layout, and its tiles their widths.
    ctx.backend = backends.select(backend or None, hidden.device, compute_dtype)
    ctx.mark_non_differentiable(row_max, is_top1, log_sum_sq, mean, *sparse_and_retained)
    ctx.set_materialize_grads(False)


def _backward(ctx, dlogp, _max, dlog_sum, _top1, dentropy, *_):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():
        raise NotYetError("linear_logprobs has no second derivative; use create_graph=False")
    unused = (None,) * 12
    hidden, weight, bias, *saved = ctx.saved_tensors
    if dlogp is None and dlog_sum is None and dentropy is None:
        return None, None, None, *unused
    need_dhidden, need_dweight, need_dbias = ctx.needs_input_grad[:3]
    dhidden, dweight, dbias = linear_logprobs_backward_op(
        dlogp,
        dlog_sum,
        dentropy,
        hidden,
        weight,
        bias,
        *saved,
        *ctx.constants,
        need_dhidden,
        need_dweight,
        need_dbias,
        ctx.backend,
    )
    return (
        dhidden if need_dhidden else None,
        dweight if need_dweight else None,
        dbias if need_dbias else None,
        *unused,
    )


linear_logprobs_op.register_autograd(_backward, setup_context=_setup_context)
