"""What programs do with a tensor in memory that is used again: optimizers, copies, processes."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rao_kernels import _memory

from .pooled import KIB, Head, buffer

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not _memory._enabled, reason="this system has no private mappings")


def _trained(make: Callable[[list[Tensor]], torch.optim.Optimizer], set_to_none: bool) -> Tensor:
    """Three steps of two micro-batches, clipped."""
    head = Head()
    optimizer = make([head.weight])
    for _ in range(3):
        for targets in (head.targets, head.targets.flip(0)):
            head.targets = targets
            head.loss().backward()
        nn.utils.clip_grad_norm_([head.weight], 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
    return head.weight.detach()


OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "SGD": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9),
    "AdamW": lambda weights: torch.optim.AdamW(weights, 1e-3),
    "AdamW foreach": lambda weights: torch.optim.AdamW(weights, 1e-3, foreach=True),
    "AdamW fused": lambda weights: torch.optim.AdamW(weights, 1e-3, fused=True),
    "Adafactor": lambda weights: torch.optim.Adafactor(weights, 1e-3),
}


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_the_same(mapped: list[int], optimizer: str, set_to_none: bool) -> None:
    with _memory.unpooled():
        expected = _trained(OPTIMIZERS[optimizer], set_to_none)
    assert mapped == []
    assert torch.equal(_trained(OPTIMIZERS[optimizer], set_to_none), expected)
    assert len(mapped) > 0


def _saved_and_loaded(gradient: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(gradient, file)
    assert len(file.getvalue()) < gradient.nbytes + 4 * KIB  # not what the mapping has beyond it
    file.seek(0)
    return torch.load(file, weights_only=True)


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": Tensor.clone,
    "deepcopy": copy.deepcopy,
    "save and load": _saved_and_loaded,
    "share_memory_": lambda gradient: gradient.detach().clone().copy_(gradient.share_memory_()),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_gradient_is_copied(mapped: list[int], name: str) -> None:
    buffer(int(1.5 * 6000 * 256 * 4))  # the mapping that dweight finds is longer than dweight
    gradient = Head().gradients()[1]
    assert 1.5 * gradient.nbytes in mapped
    expected = gradient + 0
    copied = COPIES[name](gradient)
    gradient.mul_(2.0).add_(1.0)
    assert torch.equal(copied, expected)
    assert torch.equal(gradient, expected * 2.0 + 1.0)


def _run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


SETUP = """
import os, sys
import torch
from rao_kernels import _memory
_memory.THRESHOLD = 1 << 16

def buffer(value):
    return _memory.empty((1 << 20,), torch.uint8, torch.device("cpu")).fill_(value)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_has_memory_of_its_own() -> None:
    """A child gets, writes and frees what its parent does, and neither sees the other's values."""
    _run(
        SETUP
        + """
live, spare = buffer(1), buffer(2)
where = spare.data_ptr()
del spare
reading, writing = os.pipe()
child = os.fork()
again = buffer(3)
assert again.data_ptr() == where
if child == 0:
    live.fill_(4)
    again.fill_(5)
    del live
    assert buffer(6).data_ptr() != again.data_ptr()
    os.write(writing, b".")
    os._exit(0)
os.read(reading, 1)
assert os.waitpid(child, 0)[1] == 0
assert bool((live == 1).all()) and bool((again == 3).all())
"""
    )


def test_another_process_receives_a_buffer() -> None:
    _run(
        "import torch, torch.multiprocessing as mp\nfrom tests.test_memory_users import send\n"
        "if __name__ == '__main__': send()"
    )


def send() -> None:
    """A buffer there and its double back, through the queues of torch.multiprocessing."""
    _memory.THRESHOLD = 64 * KIB
    context = torch.multiprocessing.get_context("spawn")
    there, back, read = context.Queue(), context.Queue(), context.Event()
    process = context.Process(target=_double, args=(there, back, read))
    process.start()
    there.put(buffer().fill_(7))
    assert bool((back.get(timeout=60) == 14).all())
    read.set()
    process.join(60)
    assert process.exitcode == 0


def _double(there, back, read) -> None:  # type: ignore[no-untyped-def]
    _memory.THRESHOLD = 64 * KIB
    back.put(buffer().copy_(there.get(timeout=60)).mul_(2))
    assert read.wait(60)


@pytest.mark.parametrize("ending", ["pass", "sys.exit(0)"])
def test_tensors_may_outlive_the_interpreter(ending: str) -> None:
    _run(
        """
import atexit

@atexit.register  # first, so that it runs last
def at_exit():
    assert buffer(2).data_ptr() != held.data_ptr()
"""
        + SETUP
        + f"""
held = buffer(1)
torch.held = held.view(torch.float32)
graph = (torch.ones(1 << 18, requires_grad=True) * torch.held).sum()
{ending}
"""
    )
