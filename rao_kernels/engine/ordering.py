"""Which words share a tile, so that a row can do without as many tiles as possible.

What the model makes of a few of the rows tells it. The words that these rows find likeliest fill
the first tile, which nearly every row needs. The rest is sorted into kinds: words whose logits rise
and fall together from row to row, because a row that needs one of them is likely to need the
others. Each kind fills whole tiles, its likeliest words first, and what is left over of all kinds
fills tiles of its own, likeliest first. Tiles are walked likeliest first; a narrower one is last.

Legend: R sampled rows, V vocabulary, W words of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..backends import Head
from .sparsity import take
from .work import count

SAMPLE_ROWS = 64
SAMPLE_STEP = 32  # at most one row in so many is sampled
SAMPLE_CHUNK = 8  # rows whose probabilities are formed at once: a few MB
CAST_WORDS = 8192  # words whose weights are cast at once
USEFUL_LIGHT = 1 / 16  # share of light words from which an order of the words pays
FLAT_WORDS = 2048  # words that are looked at first
TILES_OF_A_KIND = 4
EXAMPLES = 2048  # words that the kinds are found on
ROUNDS = 4  # of k-means
COINCIDENT = 0.99  # cosine from which two centres are one kind
MASKED = -1e4  # instead of lower logits: as unlikely, and fit to be averaged
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Sample:
    """What the model makes of some rows.

    logits: ``[R, V]`` before `Head.scale`, in the operands' dtype, which does for an order.
    affinity: ``[V]`` fp32, mean over the rows of ``sqrt(p_v)``: how far forward a word belongs.
        The root, because a word that many rows give a little probability keeps more tiles alive
        than one that a single row gives much.
    """

    logits: Tensor
    affinity: Tensor


def sample_step(rows: int) -> int:
    """One row in so many is sampled."""
    return max(SAMPLE_STEP, rows // SAMPLE_ROWS)


def evenly_spaced(head: Head) -> Head:
    """The rows of `head` that are sampled."""
    step = sample_step(head.rows)
    return take(head, torch.arange(0, head.rows, step, device=head.hidden.device))


def order_by_sample(head: Head, width: int, tolerance: float) -> Tensor:
    """`order_words` by evenly spaced rows of `head`.

    On a CPU, where it costs nothing to ask, a few words are looked at first: where not one is
    light, hardly one of all is.
    """
    rows, vocabulary = evenly_spaced(head), head.weight.shape[0]
    if head.hidden.device.type == "cpu":
        step = -(-vocabulary // FLAT_WORDS)
        bias = None if head.bias is None else head.bias[::step]
        few = sample(replace(rows, weight=head.weight[::step], bias=bias))
        if not _are_light(few.affinity, tolerance).any():
            return torch.arange(vocabulary)
    return order_words(sample(rows), width, tolerance)


def sample(head: Head) -> Sample:
    """The model on every row of `head`."""
    count(gemm_flops=2 * head.rows * head.weight.numel())
    logits = _products(head)
    if head.bias is not None:
        logits.add_(head.bias)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    vocabulary, device = head.weight.shape[0], head.hidden.device
    affinity = torch.zeros(vocabulary, dtype=torch.float32, device=device)
    for part in logits.split(SAMPLE_CHUNK):
        affinity += torch.softmax(part.float() * head.scale, dim=1).sqrt_().sum(0)
    if head.bias is not None:
        logits.clamp_(min=MASKED)
    return Sample(logits, affinity / max(head.rows, 1))


def _products(head: Head) -> Tensor:
    """``[R, V]``; a weight of another dtype is cast part by part."""
    if head.weight.dtype == head.hidden.dtype:
        return head.hidden @ head.weight.T
    products = head.hidden.new_empty(head.rows, head.weight.shape[0])
    parts = zip(products.split(CAST_WORDS, dim=1), head.weight.split(CAST_WORDS), strict=True)
    for part, weight in parts:
        part.copy_(head.hidden @ weight.to(head.hidden.dtype).T)
    return products


def order_words(sample: Sample, width: int, tolerance: float) -> Tensor:
    """``[V]`` the words in the order of the walk, for tiles of `width` words.

    Where hardly a word is light enough for `tolerance` they stay as they are: no order would drop
    anything, and memory is read faster in this one.
    """
    useful = _are_light(sample.affinity, tolerance).float().mean() > USEFUL_LIGHT
    affinity, vocabulary = sample.affinity * useful, len(sample.affinity)
    # The bits of floats from 0 on are in the order of the floats, and integers are sorted faster.
    lightness = _LARGEST - affinity.view(torch.int32).long()
    order = torch.argsort(lightness, stable=True)
    kinds = min(sample.logits.shape[0], round(vocabulary / (TILES_OF_A_KIND * width)))
    if kinds < 2:
        return order
    kind = _kinds(sample.logits, order[width:], kinds) + 1
    kind[order[:width]] = 0
    kind *= useful
    order = torch.argsort((kind << 31) | lightness, stable=True)
    places = _remainders_last(kind[order], lightness[order], kinds, width)
    return _heaviest_first(order[torch.argsort(places, stable=True)], affinity, width)


def _are_light(affinity: Tensor, tolerance: float) -> Tensor:
    """Which words hold less than their share of `tolerance`."""
    return affinity.square() * len(affinity) < tolerance


def _kinds(logits: Tensor, words: Tensor, kinds: int) -> Tensor:
    """``[V]`` a kind in ``[0, kinds)`` for each word, by k-means on examples out of `words`.

    Words are compared by the cosine of their logits, centred over words and over rows: the first
    takes out what makes a row's logits large, the second what makes a word likely in all rows.
    """
    step = -(-words.numel() // EXAMPLES)
    examples = logits.index_select(1, words[::step]).T.float()
    mean = examples.mean(0)
    examples = examples - mean
    examples = _unit(examples - examples.mean(1, keepdim=True))
    centres = examples[:: max(1, len(examples) // kinds)][:kinds]
    on_examples = 2 * ROUNDS * examples.numel() + kinds * examples.shape[1]
    count(gemm_flops=2 * kinds * (logits.numel() + on_examples))
    names = torch.arange(kinds, device=logits.device)
    for _ in range(ROUNDS):
        nearest = (examples @ centres.T).argmax(1)
        centres = _unit((nearest == names[:, None]).float() @ examples)
    # Between kinds that coincide rounding would choose.
    again = ((centres @ centres.T).tril(-1) > COINCIDENT).any(1)
    centres = centres.masked_fill(again[:, None], 0)
    offset = -(centres @ mean).to(logits.dtype)
    return torch.addmm(offset, logits.T, centres.T.to(logits.dtype)).argmax(1)


def _unit(rows: Tensor) -> Tensor:
    return normalize(rows, dim=1)


def _remainders_last(kind: Tensor, lightness: Tensor, kinds: int, width: int) -> Tensor:
    """``[V]`` sort keys for words that are in order of their ``kind [V]``: those that fill whole
    tiles of their kind stay, the others go last by ``lightness [V]``."""
    place = torch.arange(kind.numel(), device=kind.device)
    bounds = torch.searchsorted(kind, torch.arange(kinds + 2, device=kind.device))
    start, size = bounds[:-1], bounds.diff()
    fills = place - start[kind] < (size // width * width)[kind]
    return torch.where(fills, place, lightness + kind.numel())


def _heaviest_first(order: Tensor, affinity: Tensor, width: int) -> Tensor:
    """Whole tiles by the affinity they hold; a narrower last one stays last."""
    whole = order.numel() // width * width
    tiles = order[:whole].view(-1, width)
    ranks = torch.argsort(affinity[tiles].sum(1), descending=True, stable=True)
    return torch.cat([tiles[ranks].flatten(), order[whole:]])
