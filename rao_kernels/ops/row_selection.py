"""Select the rows of a pass. One host read per direction, none where rows are trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Selection:
    """Rows of a pass.

    index: ``[n]`` int64 into the rows of the call, or None for all of them.
    scored_row: ``[n]`` int64 into the rows of the forward pass, or None for the same rows.
    """

    index: Tensor | None = None
    scored_row: Tensor | None = None


def for_scoring(
    hidden: Tensor, targets: Tensor, ignore_index: int | None, vocabulary: int
) -> Selection:
    """Select rows whose target is not `ignore_index`; None takes all rows and reads nothing.

    Raises:
        InputError: a target is outside ``[0, V)``, or a selected row of `hidden` is not finite.
    """
    if ignore_index is None:
        return Selection()
    if not targets.numel():
        return Selection()
    active = targets != ignore_index
    outside = active & ((targets < 0) | (targets >= vocabulary))
    not_finite = active & ~hidden.abs().amax(-1).isfinite()
    count, bad_target, bad_row = torch.stack(
        [active.sum(), outside.any().long(), not_finite.any().long()]
    ).tolist()
    if bad_target:
        row = int(outside.int().argmax())
        raise InputError(
            "targets",
            f"token ids in [0, {vocabulary}) or ignore_index={ignore_index}",
            f"{int(targets[row])} in row {row}",
        )
    if bad_row:
        raise InputError(
            "hidden",
            "finite values",
            f"NaN or inf in row {int(not_finite.int().argmax())}",
            "Find where it arises upstream; ignore_index=None lets it through as NaN.",
        )
    return Selection() if count == targets.numel() else Selection(_indices(active, count))


def for_gradients(
    upstream: list[Tensor], targets: Tensor, ignore_index: int | None
) -> tuple[Selection, int]:
    """Select scored rows with a non-zero upstream gradient; also return how many were scored."""
    if ignore_index is None:
        return Selection(), targets.numel()
    scored = targets != ignore_index
    nonzero = torch.stack([gradient != 0 for gradient in upstream]).any(0)
    wanted = scored & nonzero
    scored_count, count = torch.stack([scored.sum(), wanted.sum()]).tolist()
    if count == targets.numel():
        return Selection(), scored_count
    index = _indices(wanted, count)
    if count == scored_count:
        return Selection(index), scored_count
    return Selection(index, scored.long().cumsum(0)[index] - 1), scored_count


def _indices(mask: Tensor, count: int) -> Tensor:
    return torch.nonzero_static(mask, size=count).squeeze(1)


def spread(values: Tensor, selection: Selection, rows: int) -> Tensor:
    """Scatter values of the selected rows into all `rows`; 0 elsewhere."""
    if selection.index is None:
        return values
    full = values.new_zeros(rows, *values.shape[1:])
    return full.index_copy_(0, selection.index, values)
