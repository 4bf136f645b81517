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

    def zero_between(self, slots: list[RetainedSlot | None]) -> None:
        """Zero the padding between slots, so that equal inputs give equal buffers."""
        offset = 0
        for slot in slots:
            if slot is None:
                break
            end = offset + slot.memory.numel()
            offset = aligned(end)
            if end < offset:
                self.memory[end:offset].zero_()

    def zero_unused(self, slots: list[RetainedSlot | None]) -> None:
        """Zero the bytes behind the used slots, for the same reason, unless they are many: fresh
        memory of a CPU costs nothing as long as nothing writes to it."""
        used = sum(aligned(slot.memory.numel()) for slot in slots if slot is not None)
        if self.memory.numel() - used <= ZEROED_REST:
            self.memory[used:].zero_()
