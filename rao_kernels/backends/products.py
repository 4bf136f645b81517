"""The matrix products of a tile, by the vendor's library (`gemm`).

Legend: N rows, V vocabulary, D hidden size, W entries of a tile.
"""

from __future__ import annotations

from torch import Tensor

from .gemm import add_product, on_gpu, product
from .tiles import Gradients, Head, RetainedSlot, Tile, Traits

_TRAITS = {
    "cpu": Traits(dense_width=2048, sparse_width=1024, retained_cost=300),
    "cuda": Traits(dense_width=8192, sparse_width=4096, retained_cost=0),
}
_OTHER_TRAITS = Traits(dense_width=4096, sparse_width=4096, retained_cost=0)


def traits_on(device_type: str) -> Traits:
    """Return the traits that suit these products on a device."""
    return _TRAITS.get(device_type, _OTHER_TRAITS)


def logits(
    head: Head, tile: Tile, out: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Return raw products ``hidden @ weight[tile].T``, ``[N, W]`` in the accumulator dtype.

    out: memory for them, any row stride. weight: the tile's, where the caller has it.
    """
    weight = head.weight_tile(tile) if weight is None else weight
    return product(head.hidden, weight.T, head.accumulator, out)


def weight_of_gradients(
    head: Head, tile: Tile, retained: RetainedSlot | None, out: Gradients
) -> Tensor | None:
    """Return the tile's weight for `logits` and `add_products`, or None where neither needs it.

    Gathered or cast once for both, where that is needed.
    """
    wanted = retained is None or out.dhidden is not None
    return head.weight_tile(tile) if wanted else None


def add_products(head: Head, tile: Tile, dz: Tensor, out: Gradients, weight: Tensor | None) -> None:
    """Add or write the gradients that follow from those of a tile's raw products.

    ``dhidden += dz @ weight[tile]`` (of a single tile ``=``),
    ``dweight[tile] = dz.T @ hidden``, ``dbias[tile] = sum_n dz``

    dz: ``[N, W]`` in `Precision.dz`, any row stride. weight: of `weight_of_gradients`.
    """
    if out.dhidden is not None:
        assert weight is not None
        if out.single_tile:
            product(dz, weight, out.dhidden.dtype, out=out.dhidden)
        else:
            _add_dhidden(dz, weight, out.dhidden, out.dhidden_row)
    if out.dweight is not None:
        _put_dweight(head, tile, dz, out.dweight, out.unscale)
    if out.dbias is not None:
        dbias = dz.sum(0, dtype=head.accumulator)
        tile.put(out.dbias, dbias if out.unscale is None else dbias * out.unscale)


def _add_dhidden(dz: Tensor, weight: Tensor, dhidden: Tensor, rows: Tensor | None) -> None:
    """Add ``dz @ weight`` to `rows` of dhidden, which are distinct: any order, one result."""
    if rows is None:
        add_product(dhidden, dz, weight)
    else:
        taken = dhidden.index_select(0, rows)
        add_product(taken, dz, weight)
        dhidden.index_copy_(0, rows, taken)


def _put_dweight(
    head: Head, tile: Tile, dz: Tensor, dweight: Tensor, unscale: Tensor | None
) -> None:
    """Write ``dz.T @ hidden`` to the tile's rows of dweight.

    By a GEMM that returns the weight's dtype where it can, else rounded from sums in the
    accumulator dtype.
    """
    returned = dweight.dtype == dz.dtype and on_gpu(dz)
    if unscale is None and (returned or dweight.dtype == head.accumulator):
        if tile.entries is None:
            product(dz.T, head.hidden, dweight.dtype, out=tile.of(dweight))
        else:
            tile.put(dweight, product(dz.T, head.hidden, dweight.dtype))
        return
    exact = product(dz.T, head.hidden, head.accumulator)
    tile.put(dweight, exact if unscale is None else exact.mul_(unscale))
