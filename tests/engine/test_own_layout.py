"""A backend with tile widths, a layout of retained tiles and a `begin` of its own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rao_kernels import backends, engine
from rao_kernels.backends import (
    Gradients,
    Head,
    Precision,
    RetainedSlot,
    RowGradients,
    RowState,
    Tile,
    Traits,
)
from rao_kernels.backends import eager as plain
from rao_kernels.backends.products import logits
from rao_kernels.ops import linear_logprobs

from ..cases import error

N, D, V = 5, 24, 3000
DENSE, SPARSE = 192, 128
FOOTER = 13  # bytes: sizes are then odd


class Transposed:
    """`eager`, but a retained tile is ``[W, N]`` raw products and a footer; it logs its calls."""

    NAME = "transposed"

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool]] = []
        self.widths: set[int] = set()

    def supports(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return plain.supports(device, dtype)

    def traits(self, device_type: str) -> Traits:
        return Traits(dense_width=DENSE, sparse_width=SPARSE, retained_cost=0)

    def retained_bytes(self, rows: int, width: int, precision: Precision) -> int:
        return rows * width * 4 + FOOTER

    def scratch(self, head: Head, width: int, *, backward: bool) -> Sequence[Tensor]:
        self.widths.add(width)
        return ()

    def begin(self, head: Head, scratch: Sequence[Tensor], *, backward: bool) -> None:
        self.calls.append(("begin", backward))

    def score_tile(
        self,
        head: Head,
        tile: Tile,
        state: RowState,
        retained: RetainedSlot | None,
        scratch: Sequence[Tensor],
        first: bool,
    ) -> None:
        self.calls.append(("tile", False))
        plain.score_tile(head, tile, state, None, scratch, first)
        if retained is not None:
            assert retained.memory.data_ptr() % 64 == 0
            assert retained.rows == head.rows
            products, footer = self._parts(retained, tile)
            products.copy_(logits(head, tile).T)
            footer.fill_(7)

    def grad_tile(
        self,
        head: Head,
        tile: Tile,
        rows: RowGradients,
        retained: RetainedSlot | None,
        out: Gradients,
        scratch: Sequence[Tensor],
    ) -> None:
        self.calls.append(("tile", True))
        if retained is not None:
            products, footer = self._parts(retained, tile)
            assert (footer == 7).all()
            torch.testing.assert_close(
                products if rows.retained_row is None else products[:, rows.retained_row],
                logits(head, tile).T,
            )
        plain.grad_tile(head, tile, rows, None, out, scratch)

    def _parts(self, retained: RetainedSlot, tile: Tile) -> tuple[Tensor, Tensor]:
        products = retained.memory[:-FOOTER].view(torch.float32).view(tile.width, retained.rows)
        return products, retained.memory[-FOOTER:]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Transposed:
    backend = Transposed()
    monkeypatch.setitem(backends.BACKENDS, backend.NAME, backend)
    return backend


def problem() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(N, D), torch.randn(V, D), torch.randint(0, V, (N,))


@pytest.mark.parametrize("tolerance", [0.0, 1e-6])
@pytest.mark.parametrize("workspace", [None, 2 * (N * DENSE * 4 + 64), 0])
def test_gradients(own: Transposed, workspace: int | None, tolerance: float) -> None:
    hidden, weight, targets = problem()
    targets[1] = -100
    answers = []
    for backend in (own.NAME, "eager"):
        leaves = [leaf.clone().requires_grad_() for leaf in (hidden, weight)]
        logps = linear_logprobs(
            *leaves,
            targets,
            backend=backend,
            workspace_bytes=workspace,
            grad_tolerance=tolerance,
        )
        upstream = torch.ones(N)
        upstream[3] = 0.0
        answers.append([logps, *torch.autograd.grad(logps, leaves, upstream)])
    for got, expected in zip(*answers, strict=True):
        assert error(got, expected.double()) < 1e-4
    assert own.widths == {SPARSE if tolerance else DENSE}


def test_begin_comes_before_the_first_tile_of_either_pass(own: Transposed) -> None:
    hidden, weight, targets = problem()
    linear_logprobs(hidden.requires_grad_(), weight, targets, backend=own.NAME).sum().backward()
    tiles = -(-V // DENSE)
    assert own.calls == [
        (name, backward)
        for backward in (False, True)
        for name in ("begin", *("tile" for _ in range(tiles)))
    ]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("requested", [1 << 30, 45_000])
@pytest.mark.parametrize("backend", ["transposed", "eager"])
@pytest.mark.usefixtures("own")
def test_equal_inputs_give_equal_buffers(backend: str, requested: int, sparse: bool) -> None:
    hidden, weight, targets = problem()
    head = Head(hidden, weight, None, targets, 1.0, None)
    plan = engine.make_plan(
        N,
        V,
        D,
        torch.float32,
        backend=backend,
        device_type="cpu",
        workspace_bytes=requested,
        tolerance=0.5 if sparse else 0.0,
    )
    assert 0 < plan.workspace_bytes <= requested
    order = torch.randperm(V) if sparse else None
    memories = [torch.full((plan.workspace_bytes,), byte, dtype=torch.uint8) for byte in (0, 255)]
    for memory in memories:
        engine.score(head, plan, engine.Statistics(), memory, order)
    assert torch.equal(*memories)
    assert memories[0].any()
