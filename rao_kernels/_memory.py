"""Pool of the large CPU buffers of the op, which stay resident between calls.

glibc maps each block above 32 MiB anew and unmaps it when it is freed, and the first write to a
fresh page takes several times as long as a write to a resident one. Large buffers are therefore
taken from anonymous mappings that return to this pool when no tensor uses them any more.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

THRESHOLD = 32 << 20  # bytes; the largest block that glibc ever keeps (DEFAULT_MMAP_THRESHOLD_MAX)
KEPT = 2 << 30  # bytes of free mappings at most

# Free mappings, the most recently returned last. Tensors are freed on any thread, even while that
# thread is inside these functions, so a lock could deadlock: each step below is one list operation,
# which is atomic. After a fork, parent and child have a list each, and private mappings are copied
# on write, so neither sees what the other writes.
_free: list[mmap.mmap] = []
_enabled = hasattr(mmap, "MAP_PRIVATE")  # not on Windows


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like `torch.empty`, from the pool where a CPU buffer is of at least `THRESHOLD` bytes."""
    numel = math.prod(shape)
    nbytes = numel * dtype.itemsize
    if nbytes < THRESHOLD or device.type != "cpu" or not _enabled or _must_be_filled():
        return torch.empty(shape, dtype=dtype, device=device)
    mapping = _take(nbytes)
    if mapping is None:
        try:
            mapping = _map(nbytes)
        except OSError:  # out of memory: free the pool, then let torch try or raise its error
            release_memory()
            return torch.empty(shape, dtype=dtype, device=device)
    # The storage keeps its view of the mapping alive, whoever shares that storage.
    view = memoryview(mapping)
    weakref.finalize(view, _give_back, mapping).atexit = False  # tensors may outlive it
    return torch.frombuffer(view, dtype=dtype, count=numel).resize_(shape)


def release_memory() -> None:
    """Return the memory that the op keeps for later calls to the operating system.

    On a CPU up to 2 GiB of large buffers stay with the process between calls (docs/memory.md).
    Buffers that tensors still use are not affected; they return to the pool later.
    """
    _free.clear()


@contextmanager
def unpooled() -> Iterator[None]:
    """Disable the pool inside the block, for memory measurements: torch's profiler sees only its
    own allocations."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def _must_be_filled() -> bool:
    """Return True if torch is set to fill uninitialised memory (deterministic algorithms)."""
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    return bool(filled) and torch.are_deterministic_algorithms_enabled()


def _map(nbytes: int) -> mmap.mmap:
    # Python's default, MAP_SHARED, would be one memory for a process and its forks.
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _take(nbytes: int) -> mmap.mmap | None:
    """Return the smallest free mapping of `nbytes` to twice `nbytes`, or None.

    Where there is none, the largest one of more than half of `nbytes` is unmapped, so that calls of
    varying size do not fill up memory: the caller's new mapping replaces it.
    """
    found = sorted(_free, key=len)
    for mapping in found:
        if nbytes <= len(mapping) <= 2 * nbytes and _claim(mapping):
            return mapping
    for mapping in reversed(found):
        if len(mapping) < nbytes < 2 * len(mapping) and _claim(mapping):
            break
    return None


def _claim(mapping: mmap.mmap) -> bool:
    """Take a mapping off the list; False if another thread took it first."""
    try:
        _free.remove(mapping)
    except ValueError:
        return False
    return True


def _give_back(mapping: mmap.mmap) -> None:
    """Keep a mapping that no tensor uses any more; beyond `KEPT` bytes drop the oldest."""
    if len(mapping) <= KEPT:
        _free.append(mapping)
        while sum(map(len, tuple(_free))) > KEPT:
            del _free[:1]
