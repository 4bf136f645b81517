"""The word order: words that the same rows need share tiles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rao_kernels import backends
from rao_kernels.backends import Head
from rao_kernels.engine import evenly_spaced, order_by_sample, order_words, record_work
from rao_kernels.engine import sample as sample_of
from rao_kernels.ops import linear_logprobs

from .. import seeds

WIDTH = backends.get("eager").traits("cpu").sparse_width
WORDS = 32 * WIDTH
DELTA = 2.0**-9


def topical(rows: int, dtype: torch.dtype = torch.float32, *, size: int = 2, seed: int = 0) -> Head:
    """Each row and each word lies in a direction of `size` dimensions (in one: it is for or against
    a single thing); a word is more or less common besides."""
    generator = seeds.generator(seed)
    about = torch.nn.functional.normalize(torch.randn(rows, size, generator=generator), dim=1)
    hidden = torch.cat([about, torch.ones(rows, 1)], 1)
    common = torch.rand(WORDS, 1, generator=generator) * 8
    weight = torch.cat([torch.randn(WORDS, size, generator=generator) * 4, common], 1)
    targets = torch.randint(0, WORDS, (rows,), generator=generator)
    return Head(hidden.to(dtype), weight.to(dtype), None, targets, scale=1.0, softcap=None)


def order_of(head: Head, width: int = WIDTH) -> Tensor:
    return order_by_sample(head, width, DELTA)


def by_affinity(head: Head) -> Tensor:
    """The order without kinds: the likeliest words first."""
    affinity = sample_of(evenly_spaced(head)).affinity
    return torch.argsort(affinity, descending=True, stable=True)


def by_side(head: Head) -> Tensor:
    """The best order for words that are for or against one thing: those of a side share tiles, the
    likeliest first; the likeliest of all and what fills no tile have tiles of their own."""
    words = by_affinity(head)
    first, rest = words[:WIDTH], words[WIDTH:]
    is_for = head.weight[rest, 0] > 0
    sides = [rest[is_for], rest[~is_for]]
    whole = torch.cat([side[: len(side) // WIDTH * WIDTH] for side in sides])
    return torch.cat([first, whole, rest[~torch.isin(rest, whole)]])


def kept_share(head: Head, order: Tensor | None) -> float:
    hidden = head.hidden.clone().requires_grad_()
    with record_work() as work:
        options = {"grad_tolerance": DELTA, "word_order": order, "bias": head.bias}
        linear_logprobs(hidden, head.weight, head.targets, **options).sum().backward()
    return work.row_tiles_kept / work.row_tiles


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_need_fewer_tiles_where_each_holds_words_of_a_kind(dtype: torch.dtype) -> None:
    head = topical(512, dtype)
    assert kept_share(head, None) < 0.8 * kept_share(head, by_affinity(head))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_kinds_that_coincide_are_one(dtype: torch.dtype) -> None:
    """There are two kinds of words here, where k-means looks for eight: no two share a side."""
    for seed in range(4):
        head = topical(512, dtype, size=1, seed=seed)
        assert kept_share(head, None) <= 1.01 * kept_share(head, by_side(head))


def test_the_likeliest_words_fill_the_first_tile_and_tiles_are_heaviest_first() -> None:
    head = topical(256)
    order = order_of(head)
    assert torch.equal(order[:WIDTH].sort().values, by_affinity(head)[:WIDTH].sort().values)
    held = sample_of(evenly_spaced(head)).affinity[order.view(-1, WIDTH)].sum(1)
    assert (held[:-1] >= held[1:]).all()


@pytest.mark.parametrize("rows", [1, 40, 300])
@pytest.mark.parametrize("vocabulary", [1, 700, 5000, WORDS - 37])
def test_every_word_once(rows: int, vocabulary: int) -> None:
    whole = topical(rows)
    head = Head(whole.hidden, whole.weight[:vocabulary], None, whole.targets, 1.0, 20.0)
    for width in (WIDTH, 100):
        order = order_of(head, width)
        assert torch.equal(order.sort().values, torch.arange(vocabulary))
        assert torch.equal(order, order_of(head, width))


def test_rows_that_are_not_finite_give_an_order_too() -> None:
    """Also beside an affinity that is finite, learnt from earlier calls."""
    head = topical(64)
    past = sample_of(evenly_spaced(head)).affinity
    head.hidden[0] = torch.nan
    sample = sample_of(evenly_spaced(head))
    for one in (sample, replace(sample, affinity=past)):
        order = order_words(one, WIDTH, DELTA)
        assert torch.equal(order.sort().values, torch.arange(WORDS))


@pytest.mark.parametrize("words", [WORDS, WORDS - 37])
def test_words_stay_where_hardly_one_is_light(words: int) -> None:
    head = topical(128)
    flat = Head(head.hidden, head.weight[:words] * 1e-4, None, head.targets, 1.0, None)
    with record_work() as work:
        assert torch.equal(order_of(flat), torch.arange(words))
    assert work.gemm_flops < 0.1 * 2 * 4 * flat.weight.numel()  # a few of the words told it
    order = order_words(sample_of(evenly_spaced(flat)), WIDTH, DELTA)
    assert torch.equal(order, torch.arange(words))


def test_words_that_a_bias_masks_leave_the_kinds_of_the_others() -> None:
    head = topical(512)
    bias = torch.zeros(WORDS).masked_fill(torch.rand(WORDS) < 0.05, -torch.inf)
    masked = Head(head.hidden, head.weight, bias, head.targets, scale=1.0, softcap=None)
    kept = kept_share(masked, None)
    assert kept < 0.85 * kept_share(masked, by_affinity(masked))


def test_a_bias_moves_words_forward() -> None:
    head = topical(64)
    bias = torch.zeros(WORDS)
    bias[-WIDTH:] = 60.0
    head = Head(head.hidden, head.weight, bias, head.targets, scale=1.0, softcap=None)
    assert order_of(head)[:WIDTH].min() == WORDS - WIDTH


def test_its_products_are_counted() -> None:
    head = topical(256)
    with FlopCounterMode(display=False) as seen, record_work() as work:
        order_of(head)
    assert work.gemm_flops == seen.get_total_flops()
