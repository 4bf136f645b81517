"""Work: products and bytes of a call are those of docs/memory.md. No clock is read here.

Legend: N rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rao_kernels import backends, engine
from rao_kernels.backends import Head, RowGradients
from rao_kernels.engine import Work, plan, record_work
from rao_kernels.ops import linear_logprobs

from .test_memory import peak_extra, require_cpu_library

N, D, V = 24, 8, 5000
TRAITS = backends.get("eager").traits("cpu")
DELTA = 2.0**-9


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


def retained_words(workspace: int | None, rows: int = N) -> int:
    """Words of the tiles that a buffer of so many bytes holds the logits of."""
    cut = plan.tiles(V, TRAITS)
    size = plan.workspace_bytes(
        workspace, rows, V, torch.float32, "eager", "cpu", sparse=False, bends=False
    )
    buffer = plan.RetainedBuffer("eager", torch.empty(size, dtype=torch.uint8), rows, torch.float32)
    kept = zip(cut, buffer.slots(cut), strict=True)
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
    one_tile = plan.slot_bytes("eager", N, plan.tiles(V, TRAITS)[0], torch.float32)
    words = retained_words(one_tile)
    assert 0 < words < V
    _, backward = Call().work(workspace_bytes=one_tile)
    assert backward.gemm_flops == 4 * N * V * D + 2 * N * (V - words) * D


def test_fewer_rows_than_the_buffer_was_made_for() -> None:
    """The buffer is sized before rows are selected: more tiles fit when half of them go."""
    tiles = plan.tiles(V, TRAITS)
    half = sum(plan.slot_bytes("eager", N // 2, tile, torch.float32) for tile in tiles)
    _, backward = Call(ignored=N // 2).work(workspace_bytes=half)
    assert backward.gemm_flops == 4 * (N // 2) * V * D


# The sparse backward, where the mass of each tile is known: row n looks at block n % B of the
# vocabulary and gives every other block less than e^-30; every third target is in another block.

BLOCKS = 3
WIDTH = plan.tiles(10**6, TRAITS, sparse=True)[0].width


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
    options = {"word_order": order, "workspace_bytes": workspace}
    forward, backward, pairs = known_mass(18, size, **options)
    # Where a third of the rows is not worth it, the first tile alone is retained before that shows.
    worth = plan.worth_retaining(1 / 3, size, TRAITS)
    retained = 0 if not workspace else pairs if worth else 6
    assert forward.gemm_flops == 2 * 18 * BLOCKS * WIDTH * size
    assert (backward.row_tiles, backward.row_tiles_kept) == (18 * BLOCKS, pairs)
    assert backward.gemm_flops == 2 * (3 * pairs - retained) * WIDTH * size


@pytest.mark.parametrize(("rows", "sampled"), [(18, 1), (64, 2), (130, 5), (1024, 32), (4096, 64)])
def test_products_of_the_sample_that_gives_the_order(rows: int, sampled: int) -> None:
    forward, _, _ = known_mass(rows)
    words = BLOCKS * WIDTH
    few = -(-words // -(-words // 2048))  # are looked at first
    # Where every block has its row among those sampled, no word is light, and that is all.
    every = words + few if sampled < BLOCKS else few
    assert forward.gemm_flops == 2 * (rows * words + sampled * every) * BLOCKS


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
        options = {"grad_tolerance": DELTA, "workspace_bytes": 0, "word_order": torch.arange(V)}
        targets = torch.zeros(N, dtype=torch.int64)
        linear_logprobs(hidden, weight, targets, **options).sum().backward()
    assert work.row_tiles_kept == work.row_tiles == N * len(plan.tiles(V, TRAITS, sparse=True))
    assert work.gemm_flops == 8 * N * V * D


@pytest.mark.parametrize("tolerance", [0.0, 0.25])
@pytest.mark.parametrize("workspace", [0, 250_000, 1 << 30])
def test_what_is_counted_is_what_torch_runs(workspace: int, tolerance: float) -> None:
    """The engine's own count against the products that torch sees it ask for."""
    targets = torch.randint(0, V, (N,))
    head = Head(torch.randn(N, D), torch.randn(V, D), None, targets, scale=1.0, softcap=None)
    size = plan.workspace_bytes(
        workspace, N, V, torch.float32, "eager", "cpu", sparse=tolerance > 0, bends=False
    )
    memory = torch.empty(size, dtype=torch.uint8)
    with FlopCounterMode(display=False) as seen, record_work() as work:
        order = None
        if tolerance:
            width = plan.tile_width(V, TRAITS, sparse=True)
            order = engine.order_by_sample(head, width, tolerance)
        scores = engine.score(head, "eager", engine.Statistics(), memory, order, tolerance)
        rows = RowGradients(
            scores.row_max, scores.log_sum, scores.logp, torch.ones(N), None, None, None
        )
        sparse = None
        if order is not None:
            assert scores.tile_mass is not None and scores.retained_tiles is not None
            sparse = engine.Sparsity(order, scores.tile_mass, scores.retained_tiles, tolerance)
        engine.differentiate(
            head, "eager", rows, memory, N, engine.Needs(True, True, False), sparse
        )
    assert work.gemm_flops == seen.get_total_flops()
    assert (work.row_tiles_kept < work.row_tiles) == bool(tolerance)


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
        width = plan.tiles(vocabulary, backends.get("cpu").traits("cpu"), sparse=sparse)[0].width
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
    tiles = len(plan.tiles(vocabulary, backends.get("cpu").traits("cpu"), sparse=True))
    promise = Bytes().promised(0, sparse=True)
    extra = 44 * rows * tiles + 32 * vocabulary + 4 * rows * size
    found = Bytes().measured(workspace_bytes=0, grad_tolerance=DELTA)
    assert promise <= found <= promise + extra + THREAD * torch.get_num_threads()
