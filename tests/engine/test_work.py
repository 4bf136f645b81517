"""Work: products and bytes of a call are those of docs/memory.md. No clock is read here.

Legend: N rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rao_kernels import engine
from rao_kernels.backends import Head, RowGradients
from rao_kernels.engine import Plan, Work, backward, plan, record_work
from rao_kernels.ops import linear_logprobs

from .test_memory import peak_extra, require_cpu_library

N, D, V = 24, 8, 5000
DELTA = 2.0**-9
NEEDS = engine.Needs(dhidden=torch.float32, dweight=True, dbias=False)


def plan_of(
    workspace: int | None = None,
    rows: int = N,
    vocabulary: int = V,
    size: int = D,
    *,
    backend: str = "eager",
    sparse: bool = False,
) -> Plan:
    """The plan of a call in fp32 on a CPU."""
    return engine.make_plan(
        rows,
        vocabulary,
        size,
        torch.float32,
        backend=backend,
        device_type="cpu",
        workspace_bytes=workspace,
        tolerance=DELTA if sparse else 0.0,
    )


def bytes_of_tiles(rows: int, number: int | None = None) -> int:
    """Workspace that so many tiles of so many rows take; None: all tiles."""
    slot = plan_of(1 << 40, rows).slots(rows)[:number][-1]
    assert slot is not None
    return -(-slot.stop // plan.ALIGNMENT) * plan.ALIGNMENT


@dataclass(frozen=True)
class Call:
    """A call and its backward. Rows without a target are the first `ignored`, rows without an
    upstream gradient the last `silent`."""

    ignored: int = 0
    silent: int = 0
    dhidden: bool = True
    dweight: bool = True
    rows: int = N

    def work(self, **options: Any) -> tuple[Work, Work]:
        """Of the forward and of the backward pass."""
        hidden = torch.randn(self.rows, D, requires_grad=self.dhidden)
        weight = torch.randn(V, D, requires_grad=self.dweight)
        targets = torch.randint(0, V, (self.rows,))
        targets[: self.ignored] = -100
        upstream = torch.ones(self.rows)
        upstream[self.rows - self.silent :] = 0.0
        with record_work() as forward:
            logps = linear_logprobs(hidden, weight, targets, backend="eager", **options)
        with record_work() as backward:
            if logps.requires_grad:
                logps.backward(upstream)
        return forward, backward


def retained_entries(workspace: int | None, rows: int = N) -> int:
    """Vocabulary entries whose logits a workspace of so many bytes holds."""
    planned = plan_of(workspace, rows)
    kept = zip(planned.tiles, planned.slots(rows), strict=True)
    return sum(tile.width for tile, slot in kept if slot is not None)


@pytest.mark.parametrize(
    ("call", "options", "forward", "backward"),
    [
        (Call(), {}, 2, 4),
        (Call(), {"workspace_bytes": 0}, 2, 6),
        (Call(dweight=False), {}, 2, 2),
        (Call(dweight=False), {"workspace_bytes": 0}, 2, 4),
        (Call(dhidden=False), {}, 2, 2),
        (Call(dhidden=False), {"workspace_bytes": 0}, 2, 4),
        (Call(dhidden=False, dweight=False), {}, 2, 0),
        (Call(ignored=N), {}, 0, 0),
        (Call(ignored=N // 3), {"workspace_bytes": 0}, 2 * 2 / 3, 6 * 2 / 3),
        (Call(ignored=N // 3, silent=N // 3), {"workspace_bytes": 0}, 2 * 2 / 3, 6 / 3),
        (Call(ignored=N // 3, silent=N // 3), {}, 2 * 2 / 3, 4 / 3),
        (Call(silent=N), {}, 2, 0),
        (Call(rows=0), {}, 0, 0),
    ],
)
def test_products(call: Call, options: dict[str, Any], forward: float, backward: float) -> None:
    """In N V D: 2 forward; 4 backward, 2 more where logits are recomputed."""
    found = call.work(**options)
    assert [work.gemm_flops for work in found] == [
        round(forward * N * V * D),
        round(backward * N * V * D),
    ]


def test_products_of_what_was_retained_in_part() -> None:
    one_tile = bytes_of_tiles(N, 1)
    retained = retained_entries(one_tile)
    assert 0 < retained < V
    _, backward = Call().work(workspace_bytes=one_tile)
    assert backward.gemm_flops == 4 * N * V * D + 2 * N * (V - retained) * D


def test_fewer_rows_than_the_buffer_was_made_for() -> None:
    """The buffer is sized before rows are selected: more tiles fit when half of them go."""
    half = bytes_of_tiles(N // 2)
    _, backward = Call(ignored=N // 2).work(workspace_bytes=half)
    assert backward.gemm_flops == 4 * (N // 2) * V * D


# The sparse backward, where the mass of each tile is known: row n looks at block n % B of the
# vocabulary and gives every other block less than e^-30; every third target is in another block.

BLOCKS = 3
WIDTH = plan_of(vocabulary=10**6, sparse=True).width


def known_mass(rows: int, size: int = BLOCKS, **options: Any) -> tuple[Work, Work, int]:
    """Work of both passes over blocks of one tile each, and pairs of row and tile that stay."""
    blocks = torch.arange(rows) % BLOCKS
    away = torch.arange(rows) % 3 == 1
    targets = torch.where(away, (blocks + 1) % BLOCKS, blocks) * WIDTH + torch.arange(rows) % WIDTH
    hidden = torch.nn.functional.one_hot(blocks, size).float().requires_grad_()
    weight = 40.0 * torch.eye(BLOCKS, size).repeat_interleave(WIDTH, 0)
    weight = weight.requires_grad_()
    with record_work() as forward:
        logps = linear_logprobs(
            hidden, weight, targets, backend="eager", grad_tolerance=DELTA, **options
        )
    with record_work() as backward:
        logps.sum().backward()
    return forward, backward, rows + int(away.sum())


@pytest.mark.parametrize("size", [BLOCKS, 4096])
@pytest.mark.parametrize("workspace", [0, 1 << 30])
def test_products_of_the_pairs_that_stay(workspace: int, size: int) -> None:
    order = torch.arange(BLOCKS * WIDTH)
    options = {"vocab_order": order, "workspace_bytes": workspace}
    forward, backward, pairs = known_mass(18, size, **options)
    # Where a third of the rows is not worth it, the first tile alone is retained before that shows.
    worth = plan_of(workspace, 18, BLOCKS * WIDTH, size, sparse=True).worth_retaining(1 / 3)
    retained = 0 if not workspace else pairs if worth else 6
    assert forward.gemm_flops == 2 * 18 * BLOCKS * WIDTH * size
    assert (backward.row_tiles, backward.row_tiles_kept) == (18 * BLOCKS, pairs)
    assert backward.gemm_flops == 2 * (3 * pairs - retained) * WIDTH * size


@pytest.mark.parametrize(("rows", "sampled"), [(18, 1), (64, 2), (130, 5), (1024, 32), (4096, 64)])
def test_products_of_the_sample_that_gives_the_order(rows: int, sampled: int) -> None:
    forward, _, _ = known_mass(rows)
    entries = BLOCKS * WIDTH
    subset = -(-entries // -(-entries // 2048))  # looked at first
    # With a sampled row in every block no entry is droppable, and the subset decides.
    looked_at = entries + subset if sampled < BLOCKS else subset
    assert forward.gemm_flops == 2 * (rows * entries + sampled * looked_at) * BLOCKS


def test_no_order_without_a_gradient() -> None:
    """The tolerance concerns the backward pass: a forward alone pays nothing for it."""
    hidden, weight, targets = torch.randn(N, D), torch.randn(V, D), torch.randint(0, V, (N,))
    with record_work() as work:
        linear_logprobs(hidden, weight, targets, grad_tolerance=DELTA)
    assert work.gemm_flops == 2 * N * V * D


def test_flat_rows_keep_every_pair() -> None:
    with record_work() as work:
        hidden = torch.zeros(N, D, requires_grad=True)
        weight = torch.randn(V, D, requires_grad=True)
        options = {"grad_tolerance": DELTA, "workspace_bytes": 0, "vocab_order": torch.arange(V)}
        targets = torch.zeros(N, dtype=torch.int64)
        linear_logprobs(hidden, weight, targets, **options).sum().backward()
    assert work.row_tiles_kept == work.row_tiles == N * len(plan_of(sparse=True).tiles)
    assert work.gemm_flops == 8 * N * V * D


@pytest.mark.parametrize("tolerance", [0.0, 0.25])
@pytest.mark.parametrize("workspace", [0, 250_000, 1 << 30])
def test_what_is_counted_is_what_torch_runs(workspace: int, tolerance: float) -> None:
    """The engine's own count against the products that torch sees it ask for."""
    targets = torch.randint(0, V, (N,))
    head = Head(torch.randn(N, D), torch.randn(V, D), None, targets, scale=1.0, softcap=None)
    planned = replace(plan_of(workspace, sparse=tolerance > 0), tolerance=tolerance)
    memory = torch.empty(planned.workspace_bytes, dtype=torch.uint8)
    with FlopCounterMode(display=False) as seen, record_work() as work:
        order = None
        if tolerance:
            order = engine.order_by_sample(head, planned.width, tolerance)
        scores = engine.score(head, planned, engine.Statistics(), memory, order)
        rows = RowGradients(
            scores.row_max, scores.log_sum, scores.logp, torch.ones(N), None, None, None
        )
        sparse = None
        if order is not None:
            assert scores.tile_mass is not None and scores.retained_tiles is not None
            sparse = engine.Sparsity(order, scores.tile_mass, scores.retained_tiles)
        engine.differentiate(head, planned, rows, memory, N, NEEDS, sparse)
    assert work.gemm_flops == seen.get_total_flops()
    assert (work.row_tiles_kept < work.row_tiles) == bool(tolerance)


@pytest.mark.parametrize("tolerance", [0.0, 0.25])
def test_counting_changes_no_gradient(monkeypatch: pytest.MonkeyPatch, tolerance: float) -> None:
    """The walk is the same without its side call."""
    hidden, weight = torch.randn(N, D), 4 * torch.randn(V, D)
    targets = torch.randint(0, V, (N,))
    found = []
    for counted in (True, False):
        if not counted:
            monkeypatch.setattr(backward, "_count_products", lambda *_: None)
        leaves = [leaf.clone().requires_grad_() for leaf in (hidden, weight)]
        with record_work() as work:
            logps = linear_logprobs(*leaves, targets, backend="eager", grad_tolerance=tolerance)
            found.append(torch.autograd.grad(logps.sum(), leaves))
        assert bool(work.row_tiles) == counted and work.rows_differentiated == N
    assert all(map(torch.equal, *found))


# Bytes.

SHAPE = (1024, 256, 16384)
THREAD = 600_000  # docs/memory.md: about 0.6 MB


@dataclass(frozen=True)
class Bytes:
    """A call in fp32 on the backend `cpu`, whose scratch has formulas."""

    ignored: int = 0
    silent: int = 0
    dhidden: bool = True
    dweight: bool = True

    def measured(self, **options: Any) -> int:
        """Most bytes alive at once, beyond operands and dweight."""
        rows, size, vocabulary = SHAPE
        hidden = torch.randn(rows, size, requires_grad=self.dhidden)
        weight = torch.randn(vocabulary, size, requires_grad=self.dweight)
        targets = torch.randint(0, vocabulary, (rows,))
        targets[: self.ignored] = -100
        upstream = torch.ones(rows)
        upstream[rows - self.silent :] = 0.0
        leaves = [leaf for leaf in (hidden, weight) if leaf.requires_grad]

        def call() -> Tensor:
            logps = linear_logprobs(hidden, weight, targets, backend="cpu", **options)
            return torch.autograd.grad(logps, leaves, upstream)[-1] if leaves else logps

        call()
        # The peak comes before dhidden is rounded from its accumulator, and while dweight is there.
        return peak_extra(call) + (0 if self.dweight else call().nbytes)

    def promised(self, workspace: int, *, sparse: bool = False) -> int:
        """docs/memory.md."""
        rows, size, vocabulary = SHAPE
        width = plan_of(workspace, rows, vocabulary, size, backend="cpu", sparse=sparse).width
        scored = rows - self.ignored
        selected = 0 if scored == rows else 4 * scored * size
        if not (self.dhidden or self.dweight):
            return 4 * width * size + 20 * scored * width // 256 + 20 * rows
        rows_back = scored - self.silent
        taken = 0 if rows_back == rows else 4 * rows_back * size
        scratch = 4 * width * size + 4 * rows_back * size + 4 * rows_back * width
        accumulator = 4 * rows_back * size if self.dhidden else 0
        return workspace + max(selected, taken) + scratch + accumulator + 20 * rows


@pytest.mark.parametrize(
    ("call", "workspace"),
    [
        (Bytes(dhidden=False, dweight=False), 0),
        (Bytes(), 0),
        (Bytes(), 20 << 20),
        (Bytes(dweight=False), 0),
        (Bytes(dhidden=False), 0),
        (Bytes(ignored=512), 0),
        (Bytes(silent=512), 0),
        (Bytes(ignored=256, silent=256), 0),
    ],
)
def test_bytes(call: Bytes, workspace: int) -> None:
    require_cpu_library()
    promise = call.promised(workspace)
    threads = THREAD * torch.get_num_threads()
    found = call.measured(workspace_bytes=workspace)
    assert 0.98 * promise <= found <= 1.02 * promise + threads


def test_bytes_of_a_sparse_backward() -> None:
    """Beside the dense backward's: tile masses and what chooses rows by them, permutations, the
    rows of hidden that a tile needs."""
    require_cpu_library()
    rows, size, vocabulary = SHAPE
    tiles = len(plan_of(0, rows, vocabulary, size, backend="cpu", sparse=True).tiles)
    promise = Bytes().promised(0, sparse=True)
    extra = 44 * rows * tiles + 32 * vocabulary + 4 * rows * size
    found = Bytes().measured(workspace_bytes=0, grad_tolerance=DELTA)
    assert promise <= found <= promise + extra + THREAD * torch.get_num_threads()
