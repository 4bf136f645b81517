"""The vocabulary order: entries that the same rows need share tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rao_kernels import backends
from rao_kernels.backends import Head
from rao_kernels.engine import evenly_spaced, order_by_sample, order_vocabulary, record_work
from rao_kernels.engine import sample as sample_of
from rao_kernels.ops import linear_logprobs

from .. import seeds

WIDTH = backends.get("eager").traits("cpu").sparse_width
V = 32 * WIDTH
DELTA = 2.0**-9


def topical(rows: int, dtype: torch.dtype = torch.float32, *, size: int = 2, seed: int = 0) -> Head:
    """Each row and each entry has a direction in `size` dimensions (in one dimension: a sign), and
    each entry a frequency of its own."""
    generator = seeds.generator(seed)
    about = torch.nn.functional.normalize(torch.randn(rows, size, generator=generator), dim=1)
    hidden = torch.cat([about, torch.ones(rows, 1)], 1)
    common = torch.rand(V, 1, generator=generator) * 8
    weight = torch.cat([torch.randn(V, size, generator=generator) * 4, common], 1)
    targets = torch.randint(0, V, (rows,), generator=generator)
    return Head(hidden.to(dtype), weight.to(dtype), None, targets, scale=1.0, softcap=None)


def order_of(head: Head, width: int = WIDTH) -> Tensor:
    return order_by_sample(head, width, DELTA)


def by_mean_sqrt_prob(head: Head) -> Tensor:
    """Order without clusters: the likeliest entries first."""
    mean_sqrt_prob = sample_of(evenly_spaced(head)).mean_sqrt_prob
    return torch.argsort(mean_sqrt_prob, descending=True, stable=True)


def by_side(head: Head) -> Tensor:
    """Best order for directions in one dimension: entries of a sign share tiles, the likeliest
    first; the likeliest of all, and what fills no tile, have tiles of their own."""
    entries = by_mean_sqrt_prob(head)
    first, rest = entries[:WIDTH], entries[WIDTH:]
    positive = head.weight[rest, 0] > 0
    sides = [rest[positive], rest[~positive]]
    whole = torch.cat([side[: len(side) // WIDTH * WIDTH] for side in sides])
    return torch.cat([first, whole, rest[~torch.isin(rest, whole)]])


def kept_share(head: Head, order: Tensor | None) -> float:
    hidden = head.hidden.clone().requires_grad_()
    with record_work() as work:
        options = {"grad_tolerance": DELTA, "vocab_order": order, "bias": head.bias}
        linear_logprobs(hidden, head.weight, head.targets, **options).sum().backward()
    return work.row_tiles_kept / work.row_tiles


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_need_fewer_tiles_of_clustered_entries(dtype: torch.dtype) -> None:
    head = topical(512, dtype)
    assert kept_share(head, None) < 0.8 * kept_share(head, by_mean_sqrt_prob(head))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_coinciding_clusters_are_merged(dtype: torch.dtype) -> None:
    """There are two clusters here, and k-means looks for eight."""
    for seed in range(4):
        head = topical(512, dtype, size=1, seed=seed)
        assert kept_share(head, None) <= 1.01 * kept_share(head, by_side(head))


def test_likeliest_entries_fill_the_first_tile_and_tiles_descend_in_mass() -> None:
    head = topical(256)
    order = order_of(head)
    assert torch.equal(order[:WIDTH].sort().values, by_mean_sqrt_prob(head)[:WIDTH].sort().values)
    held = sample_of(evenly_spaced(head)).mean_sqrt_prob[order.view(-1, WIDTH)].sum(1)
    assert (held[:-1] >= held[1:]).all()


@pytest.mark.parametrize("rows", [1, 40, 300])
@pytest.mark.parametrize("vocabulary", [1, 700, 5000, V - 37])
def test_order_is_a_permutation(rows: int, vocabulary: int) -> None:
    whole = topical(rows)
    head = Head(whole.hidden, whole.weight[:vocabulary], None, whole.targets, 1.0, 20.0)
    for width in (WIDTH, 100):
        order = order_of(head, width)
        assert torch.equal(order.sort().values, torch.arange(vocabulary))
        assert torch.equal(order, order_of(head, width))


def test_rows_that_are_not_finite_give_a_permutation() -> None:
    head = topical(64)
    head.hidden[0] = torch.nan
    order = order_vocabulary(sample_of(evenly_spaced(head)), WIDTH, DELTA)
    assert torch.equal(order.sort().values, torch.arange(V))


@pytest.mark.parametrize("vocabulary", [V, V - 37])
def test_order_is_the_identity_where_nothing_is_droppable(vocabulary: int) -> None:
    head = topical(128)
    flat = Head(head.hidden, head.weight[:vocabulary] * 1e-4, None, head.targets, 1.0, None)
    with record_work() as work:
        assert torch.equal(order_of(flat), torch.arange(vocabulary))
    assert work.gemm_flops < 0.1 * 2 * 4 * flat.weight.numel()  # decided on a subset
    order = order_vocabulary(sample_of(evenly_spaced(flat)), WIDTH, DELTA)
    assert torch.equal(order, torch.arange(vocabulary))


def test_entries_masked_by_a_bias_do_not_change_the_clusters_of_the_others() -> None:
    head = topical(512)
    bias = torch.zeros(V).masked_fill(torch.rand(V) < 0.05, -torch.inf)
    masked = Head(head.hidden, head.weight, bias, head.targets, scale=1.0, softcap=None)
    kept = kept_share(masked, None)
    assert kept < 0.85 * kept_share(masked, by_mean_sqrt_prob(masked))


def test_bias_moves_entries_forward() -> None:
    head = topical(64)
    bias = torch.zeros(V)
    bias[-WIDTH:] = 60.0
    head = Head(head.hidden, head.weight, bias, head.targets, scale=1.0, softcap=None)
    assert order_of(head)[:WIDTH].min() == V - WIDTH


def test_its_products_are_counted() -> None:
    head = topical(256)
    with FlopCounterMode(display=False) as seen, record_work() as work:
        order_of(head)
    assert work.gemm_flops == seen.get_total_flops()
