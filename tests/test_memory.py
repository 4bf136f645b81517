"""Large CPU buffers: when their memory comes back, who gets it next, and how much of it is kept."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rao_kernels
from rao_kernels import _memory

from . import seeds
from .pooled import CPU, KIB, MIB, Head, buffer, free

pytestmark = pytest.mark.skipif(not _memory._enabled, reason="this system has no private mappings")


def test_small_buffers_and_other_devices_are_not_mapped(mapped: list[int]) -> None:
    assert buffer(64 * KIB - 1).shape == (64 * KIB - 1,)
    assert _memory.empty((3, 0), torch.float32, CPU).shape == (3, 0)
    meta = _memory.empty((1000, 1000), torch.float32, torch.device("meta"))
    assert meta.device.type == "meta"
    assert mapped == []
    assert buffer(64 * KIB).numel() == 64 * KIB
    assert mapped == [64 * KIB]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float16, torch.float32])
def test_a_buffer_is_what_torch_makes(mapped: list[int], dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, expected = _memory.empty((300, 500), dtype, CPU), torch.empty(300, 500, dtype=dtype)
    for attribute in ("shape", "dtype", "device", "is_leaf", "requires_grad"):
        assert getattr(found, attribute) == getattr(expected, attribute)
    assert found.stride() == expected.stride()
    assert found.untyped_storage().nbytes() == expected.untyped_storage().nbytes()
    assert not found._is_view()
    assert len(mapped) == 1


class _Saves(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):  # type: ignore[no-untyped-def]
        saved = buffer()
        ctx.save_for_backward(saved)
        ctx.pointer = saved.data_ptr()
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        assert ctx.saved_tensors[0].data_ptr() == ctx.pointer
        return gradient


def _as_gradient(values: Tensor) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(MIB // 4))
    parameter.grad = values.view(torch.float32)
    return parameter


USERS: dict[str, Callable[[Tensor], object]] = {
    "itself": lambda values: values,
    "view": lambda values: values[1000:1001],
    "other dtype": lambda values: values.view(torch.float32),
    "detached": lambda values: values.detach(),
    "data": lambda values: values.data,
    "storage": lambda values: values.untyped_storage(),
    "numpy": lambda values: values[4:8].numpy(),
    "dlpack": lambda values: torch.from_dlpack(values),
    "parameter": lambda values: nn.Parameter(values.view(torch.float32)),
    "gradient": _as_gradient,
}


@pytest.mark.parametrize("user", USERS)
def test_memory_comes_back_when_nothing_uses_it(mapped: list[int], user: str) -> None:
    values = buffer()
    pointer = values.data_ptr()
    kept = USERS[user](values)
    del values
    assert free() == []
    assert buffer().data_ptr() != pointer
    del kept
    assert free() == [MIB, MIB]
    again = [buffer(), buffer()]
    assert pointer in [one.data_ptr() for one in again]
    assert len(mapped) == 2


def test_memory_saved_by_a_graph_comes_back_with_it(mapped: list[int]) -> None:
    leaf = torch.zeros(3, requires_grad=True)
    result = _Saves.apply(leaf)
    result.sum().backward(retain_graph=True)
    assert free() == []
    result.sum().backward()
    assert free() == [MIB]


def test_backward_twice_through_one_graph(mapped: list[int]) -> None:
    head = Head()
    loss = head.loss()
    leaves = [head.hidden, head.weight]
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    buffer().fill_(255), buffer(4 * MIB).fill_(255)
    second = torch.autograd.grad(loss, leaves)
    assert all(map(torch.equal, first, second))


def test_a_gradient_that_lives_is_never_handed_out(mapped: list[int]) -> None:
    """Neither to a later call nor to a second backward, whoever holds it."""
    head = Head()
    kept, expected = [], []
    for step in range(4):
        head.targets = (head.targets + step) % 6000
        found = head.gradients()
        kept.append(found[1][5000:5001] if step % 2 else found[1])
        expected.append(kept[-1].clone())
        del found
    assert all(map(torch.equal, kept, expected))
    assert len({one.untyped_storage().data_ptr() for one in kept}) == 4


def test_another_thread_may_drop_the_last_reference(mapped: list[int]) -> None:
    held = [buffer()]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert free() == [MIB]


def test_threads_never_share_a_buffer(mapped: list[int]) -> None:
    def work(number: int) -> None:
        draws = seeds.generator(number)
        held: list[Tensor] = []
        for _ in range(400):
            size, place = torch.randint(64, 512, (2,), generator=draws).tolist()
            held.append(buffer(size * KIB))
            held[-1][::4096] = number
            if len(held) > 3:
                taken = held.pop(place % len(held))
                assert bool((taken[::4096] == number).all())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(mapped) < 8 * 400  # some were used again
    assert sum(free()) <= _memory.KEPT


def test_the_smallest_that_fits_is_taken(mapped: list[int]) -> None:
    sizes = [4 * MIB, 5 * MIB, 6 * MIB]
    held = [buffer(size) for size in sizes]
    pointers = dict(zip(sizes, [one.data_ptr() for one in held], strict=True))
    while held:
        held.pop()
    assert free() == sizes[::-1]
    assert buffer(4 * MIB + 1).data_ptr() == pointers[5 * MIB]
    small = buffer(2 * MIB - 1)  # less than half of the smallest
    assert small.data_ptr() not in pointers.values()
    assert mapped == [*sizes, 2 * MIB - 1]


def test_a_larger_one_takes_the_place_of_the_nearest(mapped: list[int]) -> None:
    held = [buffer(size) for size in (MIB, 2 * MIB, 8 * MIB)]
    held.clear()
    buffer(3 * MIB)
    assert sorted(free()) == [MIB, 3 * MIB, 8 * MIB]


def test_sizes_that_vary_do_not_fill_up_memory(mapped: list[int]) -> None:
    sizes = torch.randint(MIB, 2 * MIB, (50,)).tolist()
    for size in sizes:
        buffer(size)
        assert len(free()) == 1  # as many as were in use at once
    assert free() == [max(sizes)]
    assert len(mapped) < 20  # as often as one is larger than all before


def test_what_is_kept_is_bounded(mapped: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "KEPT", 16 * MIB)
    sizes = [(index + 1) * MIB // 4 for index in range(50)]  # 319 MiB
    held = [buffer(size) for size in sizes]
    while held:
        held.pop(0)
        assert sum(free()) <= 16 * MIB
    assert free() == sizes[-1:]  # the oldest went first
    buffer(32 * MIB)
    assert free() == sizes[-1:]  # what is larger than all that is kept does not displace it
    for step in range(50):
        buffer((step % 7 + 1) * 3 * MIB // 2 + step)
        assert sum(free()) <= 16 * MIB


def test_release_memory_gives_it_back(mapped: list[int]) -> None:
    head = Head()
    gradients = head.gradients()
    expected = [one.clone() for one in gradients]
    assert free() != []
    rao_kernels.release_memory()
    assert free() == []
    assert all(map(torch.equal, gradients, expected))
    del gradients
    assert head.weight.nbytes in free()  # for the next call
    rao_kernels.release_memory()
    assert free() == []


def test_release_memory_shrinks_the_process() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("Linux only")

    def resident() -> int:
        return int(status.read_text().split("VmRSS:")[1].split()[0]) * KIB

    _memory.release_memory()
    before = resident()
    buffer(256 * MIB).fill_(1)
    assert resident() - before > 240 * MIB
    rao_kernels.release_memory()
    assert resident() - before < 16 * MIB


@pytest.mark.parametrize("options", [{}, {"workspace_bytes": 0}, {"grad_tolerance": 1e-3}])
def test_equal_steps_map_once(mapped: list[int], options: dict[str, object]) -> None:
    head = Head()
    for step in range(5):
        head.loss(**options).backward()
        head.weight.grad = head.hidden.grad = None
        if step == 0:
            first = len(mapped)
            assert first > 0
    assert len(mapped) == first


@pytest.mark.parametrize("targets", ["some", "none"])
@pytest.mark.parametrize("backend", ["", "eager"])
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_what_memory_held_before_does_not_matter(
    mapped: list[int], backend: str, tolerance: float, targets: str
) -> None:
    head = Head()
    if targets == "none":
        head.targets.fill_(-100)
    options = {"grad_tolerance": tolerance, "backend": backend or None}
    with _memory.unpooled():
        expected = head.gradients(**options)
    assert mapped == []
    head.gradients(**options)
    assert len(free()) > 0
    for mapping in _memory._free:
        mapping[:] = b"\xff" * len(mapping)  # NaN in each float type
    assert all(map(torch.equal, head.gradients(**options), expected))


def test_deterministic_fills_it_as_torch_does(mapped: list[int], nan_filled_memory: None) -> None:
    assert _memory.empty((1000, 100), torch.float32, CPU).isnan().all()
    assert mapped == []


def test_without_memory_torch_is_asked(mapped: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    buffer()

    def full(nbytes: int) -> object:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(_memory, "_map", full)
    assert buffer(3 * MIB).fill_(1).sum() == 3 * MIB
    assert free() == []  # torch had this memory too
    with pytest.raises(RuntimeError, match="allocate"):
        buffer(1 << 60)
