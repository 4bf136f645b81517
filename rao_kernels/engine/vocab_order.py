"""Permute the vocabulary so that each row's probability mass sits in few tiles.

Backward can then skip the other tiles of that row. The permutation is estimated from a sample of
the rows: the entries with the largest mean sqrt(p) fill the first tile, which nearly every row
needs. The others are clustered by their logits over the sampled rows (k-means), because a row that
needs one entry of a cluster is likely to need the rest. A cluster fills whole tiles, its likeliest
entries first; what is left over of all clusters fills tiles of its own. Tiles are walked in
descending order of mean sqrt(p).

Legend: M sampled rows, V vocabulary, W entries of a tile.
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
SAMPLE_STEP = 32  # sample at most one row in 32
SAMPLE_CHUNK = 8  # rows whose probabilities are formed at once: a few MB
CAST_ENTRIES = 8192  # entries whose weights are cast at once
USEFUL_SHARE = 1 / 16  # least share of droppable entries at which reordering saves time
PROBE_ENTRIES = 2048  # entries of the subset that is checked first
TILES_PER_CLUSTER = 4
KMEANS_ENTRIES = 2048  # entries that k-means runs on
KMEANS_ROUNDS = 4
COINCIDENT = 0.99  # cosine from which two centres are one cluster
MASKED_LOGIT = -1e4  # replaces lower logits: as unlikely, and finite in an average
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Sample:
    """Logits of the sampled rows.

    logits: ``[M, V]`` before `Head.scale`, in the operands' dtype, which is precise enough here.
    mean_sqrt_prob: ``[V]`` fp32, mean over the rows of ``sqrt(p_v)``. The root, because an entry
        to which many rows give a little probability makes more rows need its tile than one to
        which a single row gives much.
    """

    logits: Tensor
    mean_sqrt_prob: Tensor


def evenly_spaced(head: Head) -> Head:
    """Select the rows to sample: one in 32 of up to 2,048 rows, else about 64."""
    step = max(SAMPLE_STEP, head.rows // SAMPLE_ROWS)
    return take(head, torch.arange(0, head.rows, step, device=head.hidden.device))


def order_by_sample(head: Head, width: int, tolerance: float) -> Tensor:
    """Apply `order_vocabulary` to evenly spaced rows of `head`.

    On a CPU, where the host reads results without waiting, a subset of the vocabulary is checked
    first: if none of its entries is droppable, almost none of all are, and the identity results.
    """
    rows, vocabulary = evenly_spaced(head), head.weight.shape[0]
    if head.hidden.device.type == "cpu":
        step = -(-vocabulary // PROBE_ENTRIES)
        bias = None if head.bias is None else head.bias[::step]
        subset = sample(replace(rows, weight=head.weight[::step], bias=bias))
        if not _droppable(subset.mean_sqrt_prob, tolerance).any():
            return torch.arange(vocabulary)
    return order_vocabulary(sample(rows), width, tolerance)


def sample(head: Head) -> Sample:
    """Compute the logits of every row of `head` and their mean sqrt(p)."""
    count(gemm_flops=2 * head.rows * head.weight.numel())
    logits = _products(head)
    if head.bias is not None:
        logits.add_(head.bias)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    vocabulary, device = head.weight.shape[0], head.hidden.device
    total = torch.zeros(vocabulary, dtype=torch.float32, device=device)
    for part in logits.split(SAMPLE_CHUNK):
        total += torch.softmax(part.float() * head.scale, dim=1).sqrt_().sum(0)
    if head.bias is not None:
        logits.clamp_(min=MASKED_LOGIT)
    return Sample(logits, total / max(head.rows, 1))


def _products(head: Head) -> Tensor:
    """Return ``hidden @ weight.T``, ``[M, V]``; a weight of another dtype is cast in parts."""
    if head.weight.dtype == head.hidden.dtype:
        return head.hidden @ head.weight.T
    products = head.hidden.new_empty(head.rows, head.weight.shape[0])
    parts = zip(products.split(CAST_ENTRIES, dim=1), head.weight.split(CAST_ENTRIES), strict=True)
    for part, weight in parts:
        part.copy_(head.hidden @ weight.to(head.hidden.dtype).T)
    return products


def order_vocabulary(sample: Sample, width: int, tolerance: float) -> Tensor:
    """Return ``[V]``, the vocabulary entry at each position of the walk, for tiles of `width`.

    The identity where too few entries are droppable at `tolerance`: no order would let rows drop
    tiles then, and weights are read fastest in their own order.
    """
    useful = _droppable(sample.mean_sqrt_prob, tolerance).float().mean() > USEFUL_SHARE
    mean_sqrt_prob = sample.mean_sqrt_prob * useful
    vocabulary = mean_sqrt_prob.numel()
    # The bits of floats from 0 on are in the order of the floats, and integers are sorted faster.
    descending = _LARGEST - mean_sqrt_prob.view(torch.int32).long()
    order = torch.argsort(descending, stable=True)
    clusters = min(sample.logits.shape[0], round(vocabulary / (TILES_PER_CLUSTER * width)))
    if clusters < 2:
        return order
    # Cluster 0 is the first tile.
    cluster = _clusters(sample.logits, order[width:], clusters) + 1
    cluster[order[:width]] = 0
    cluster *= useful
    order = torch.argsort((cluster << 31) | descending, stable=True)
    keys = _remainders_last(cluster[order], descending[order], clusters, width)
    return _heaviest_first(order[torch.argsort(keys, stable=True)], mean_sqrt_prob, width)


def _droppable(mean_sqrt_prob: Tensor, tolerance: float) -> Tensor:
    """Return a mask of the entries whose estimated probability is below ``tolerance / V``."""
    return mean_sqrt_prob.square() * len(mean_sqrt_prob) < tolerance


def _clusters(logits: Tensor, entries: Tensor, clusters: int) -> Tensor:
    """Return ``[V]`` cluster ids in ``[0, clusters)``, by k-means on a subset of `entries`.

    Entries are compared by the cosine of their logits, centred over entries and over rows: the
    first removes what makes a row's logits large, the second what makes an entry likely in all
    rows.
    """
    step = -(-entries.numel() // KMEANS_ENTRIES)
    points = logits.index_select(1, entries[::step]).T.float()
    mean = points.mean(0)
    points = points - mean
    points = normalize(points - points.mean(1, keepdim=True), dim=1)
    centres = points[:: max(1, len(points) // clusters)][:clusters]
    on_points = 2 * KMEANS_ROUNDS * points.numel() + clusters * points.shape[1]
    count(gemm_flops=2 * clusters * (logits.numel() + on_points))
    ids = torch.arange(clusters, device=logits.device)
    for _ in range(KMEANS_ROUNDS):
        nearest = (points @ centres.T).argmax(1)
        centres = normalize((nearest == ids[:, None]).float() @ points, dim=1)
    # Rounding would decide between centres that coincide: only the first of them is kept.
    duplicate = ((centres @ centres.T).tril(-1) > COINCIDENT).any(1)
    centres = centres.masked_fill(duplicate[:, None], 0)
    offset = -(centres @ mean).to(logits.dtype)
    return torch.addmm(offset, logits.T, centres.T.to(logits.dtype)).argmax(1)


def _remainders_last(cluster: Tensor, descending: Tensor, clusters: int, width: int) -> Tensor:
    """Return ``[V]`` sort keys for entries sorted by ``cluster [V]``: those that fill whole tiles
    of their cluster keep their position, the others go last by ``descending [V]``."""
    position = torch.arange(cluster.numel(), device=cluster.device)
    bounds = torch.searchsorted(cluster, torch.arange(clusters + 2, device=cluster.device))
    start, size = bounds[:-1], bounds.diff()
    fills = position - start[cluster] < (size // width * width)[cluster]
    return torch.where(fills, position, descending + cluster.numel())


def _heaviest_first(order: Tensor, mean_sqrt_prob: Tensor, width: int) -> Tensor:
    """Sort whole tiles by their sum of mean sqrt(p), descending; a narrower one stays last."""
    whole = order.numel() // width * width
    tiles = order[:whole].view(-1, width)
    ranks = torch.argsort(mean_sqrt_prob[tiles].sum(1), descending=True, stable=True)
    return torch.cat([tiles[ranks].flatten(), order[whole:]])
