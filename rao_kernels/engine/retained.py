"""The buffer that carries retained tiles from forward to backward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..backends import RetainedSlot
from .plan import Plan, aligned

ZEROED_REST = 1 << 24  # bytes; a larger unused rest is left uninitialised


@dataclass(frozen=True)
class RetainedBuffer:
    """Flat bytes of the plan's size, divided into slots for the rows that forward scored."""

    plan: Plan
    memory: Tensor
    rows: int

    def __post_init__(self) -> None:
        assert self.memory.numel() == self.plan.workspace_bytes

    def slots(self) -> list[RetainedSlot | None]:
        """Return for each tile the memory it is retained in, or None."""
        return [
            None if span is None else RetainedSlot(self.memory[span.start : span.stop], self.rows)
            for span in self.plan.slots(self.rows)
        ]

    def zero_rest(self, slots: list[RetainedSlot | None]) -> None:
        """Zero what lies outside the used slots, so that equal inputs give equal buffers.

        What lies behind them is left as it is where it is much: fresh memory of a CPU costs nothing
        as long as nothing writes to it.
        """
        sizes = [slot.memory.numel() for slot in slots if slot is not None]
        end = sum(sizes[-1:])
        if len(sizes) > 1:  # all but the last are of one size
            size, step = sizes[0], aligned(sizes[0])
            last = (len(sizes) - 1) * step
            end += last
            if size < step:
                self.memory[:last].view(-1, step)[:, size:].zero_()
        rest = self.memory[end:]
        if 0 < rest.numel() <= ZEROED_REST:
            rest.zero_()
