"""The forward walk over vocabulary tiles. Legend: N rows, V vocabulary, D hidden size."""

from __future__ import annotations

from torch import Tensor

from .. import backends
from ..backends import Head, RetainedSlot, RowState, Tile
from . import sparsity
from .plan import Plan
from .retained import RetainedBuffer
from .statistics import Scores, Statistics, finish, initial_states, states_of_tiles
from .work import count


def score(
    head: Head, plan: Plan, wanted: Statistics, memory: Tensor, order: Tensor | None = None
) -> Scores:
    """Score every tile, retaining in `memory` those that the plan has a slot for.

    memory: flat bytes of the plan's size. order: ``[V]`` the vocabulary entry at each position of
    the walk, for a sparse plan; None for a dense one.
    """
    assert plan.precision == head.precision and plan.sparse == (order is not None)
    buffer = RetainedBuffer(plan, memory, head.rows)
    states = initial_states(head, plan, wanted)
    used = _walk(head, plan, buffer.slots(), states, order)
    buffer.zero_rest(used)
    count(rows_scored=head.rows, gemm_flops=2 * head.rows * head.weight.numel())
    retained = sum(slot is not None for slot in used)
    return finish(states, plan.vocabulary, wanted, retained if plan.sparse else None)


def _arranged(head: Head, plan: Plan, order: Tensor | None) -> tuple[Head, tuple[Tile, ...]]:
    """Return the head and the tiles of a walk in this order.

    An identity takes the tiles as they are, so that no weights are gathered. One read on the host,
    which on a GPU waits for the estimate of the order.
    """
    if order is None:
        return head, plan.tiles
    identity = bool(sparsity.is_identity(order))
    tiles = plan.tiles if identity else sparsity.tiles_in_order(plan, order)
    return sparsity.in_order(head, order), tiles


def _walk(
    head: Head,
    plan: Plan,
    slots: list[RetainedSlot | None],
    states: RowState,
    order: Tensor | None,
) -> list[RetainedSlot | None]:
    """Add every tile to the statistics of its part; return the slots that were used.

    Tiles of a sparse pass are in descending order of the probability mass expected in them: once
    one is not worth retaining, no later one is.
    """
    used: list[RetainedSlot | None] = [None] * len(plan.tiles)
    if not head.rows:
        return used
    module = backends.get(plan.backend)
    head, tiles = _arranged(head, plan, order)
    parts = states_of_tiles(states, len(tiles))
    scratch = module.scratch(head, plan.width, backward=False)
    module.begin(head, scratch, backward=False)
    retain = True
    for number, tile in enumerate(tiles):
        used[number] = slots[number] if retain else None
        first = number == 0 and not plan.sparse
        module.score_tile(head, tile, parts[number], used[number], scratch, first)
        if used[number] is not None and plan.reconsiders(number):
            share = sparsity.needing_share(states, number, plan.tolerance)
            retain = plan.worth_retaining(share)
    return used
