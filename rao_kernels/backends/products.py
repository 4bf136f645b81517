"""Matrix products of a tile through torch, with every sum in the accumulator's precision.

They run in the vendor's library (cuBLAS, oneDNN, MKL). On CUDA its GEMM takes half-precision
operands and returns its fp32 sums; elsewhere operands are widened first.

Legend: N rows, V vocabulary, D hidden size, W entries of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .tiles import Gradients, Head, Tile, Traits

_TRAITS = {
    "cpu": Traits(dense_width=2048, sparse_width=1024, retained_cost=300),
    "cuda": Traits(dense_width=8192, sparse_width=4096, retained_cost=0),
}
_OTHER_TRAITS = Traits(dense_width=4096, sparse_width=4096, retained_cost=0)


def traits_on(device_type: str) -> Traits:
    """Return the traits that suit these products on a device."""
    return _TRAITS.get(device_type, _OTHER_TRAITS)


def logits(head: Head, tile: Tile, out: Tensor | None = None) -> Tensor:
    """Return raw products ``hidden @ weight[tile].T``, ``[N, W]`` in the accumulator dtype.

    out: memory for them, any row stride.
    """
    return _product(head.hidden, head.weight_tile(tile).T, head.accumulator, out)


def add_products(head: Head, tile: Tile, dz: Tensor, out: Gradients) -> None:
    """Add or write the gradients that follow from those of a tile's raw products.

    ``dhidden += dz @ weight[tile]``, ``dweight[tile] = dz.T @ hidden``, ``dbias[tile] = sum_n dz``

    dz: ``[N, W]`` in `Precision.dz`, any row stride.
    """
    if out.dhidden is not None:
        _add_dhidden(head, tile, dz, out.dhidden, out.dhidden_row)
    if out.dweight is not None:
        _put_dweight(head, tile, dz, out.dweight, out.unscale)
    if out.dbias is not None:
        dbias = dz.sum(0, dtype=head.accumulator)
        tile.put(out.dbias, dbias if out.unscale is None else dbias * out.unscale)


def _product(a: Tensor, b: Tensor, accumulator: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Return ``a @ b`` in the accumulator dtype."""
    if a.dtype == accumulator:
        return torch.mm(a, b, out=out)
    if _mixes(a):
        return torch.mm(a, b, out_dtype=accumulator, out=out)
    return torch.mm(a.to(accumulator), b.to(accumulator), out=out)


def _mixes(a: Tensor) -> bool:
    """Return True if the GEMM writes fp32 products of half-precision operands: not ROCm's."""
    return a.is_cuda and torch.version.hip is None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Compute ``total += a @ b``, accumulated in the dtype of `total`."""
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, out=total)
    elif _mixes(a):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, a.to(total.dtype), b.to(total.dtype), out=total)


def _add_dhidden(head: Head, tile: Tile, dz: Tensor, dhidden: Tensor, rows: Tensor | None) -> None:
    """Add ``dz @ weight[tile]`` to `rows` of dhidden, which are distinct: any order, one result."""
    weight = head.weight_tile(tile)
    if rows is None:
        _add_product(dhidden, dz, weight)
    else:
        taken = dhidden.index_select(0, rows)
        _add_product(taken, dz, weight)
        dhidden.index_copy_(0, rows, taken)


def _put_dweight(
    head: Head, tile: Tile, dz: Tensor, dweight: Tensor, unscale: Tensor | None
) -> None:
    """Write ``dz.T @ hidden`` to the tile's rows of dweight.

    Directly by the GEMM where it can write the weight's dtype, else rounded from sums in the
    accumulator dtype. The GEMM rounds once, unless torch.backends.cuda.matmul allows
    reduced-precision reductions and it splits the rows.
    """
    straight = unscale is None and tile.entries is None
    if straight and dweight.dtype == head.accumulator:
        _product(dz.T, head.hidden, head.accumulator, out=tile.of(dweight))
    elif straight and dweight.dtype == dz.dtype and dz.is_cuda:
        torch.mm(dz.T, head.hidden, out=tile.of(dweight))
    else:
        exact = _product(dz.T, head.hidden, head.accumulator)
        if unscale is not None:
            exact.mul_(unscale)
        tile.put(dweight, exact.to(dweight.dtype))
