"""Two real processes (gloo): gradients agree across ranks and with one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from rao_kernels import _memory
from rao_kernels.hf import attach_fused_head

from .models import batch, tiny_model

ROOT = Path(__file__).resolve().parents[2]
RANKS = 2
# Untied and tied heads; the head sharded with the model and as a unit of its own.
CASES = (
    ("llama", "ddp"),
    ("qwen3", "ddp"),
    ("llama", "fsdp2_root"),
    ("qwen3", "fsdp2_root"),
    ("llama", "fsdp2_own_unit"),
)


def _rank_batch(rank: int, step: int) -> dict[str, Tensor]:
    """Return a batch per rank; in the second step rank 1 has no target."""
    inputs = batch(size=2 + rank, length=6 + 2 * rank + step)
    if (rank, step) == (1, 1):
        inputs["logp_targets"].fill_(-100)
    position = torch.arange(inputs["input_ids"].shape[1])
    inputs["logp_grad_mask"] = (position >= 2).expand_as(inputs["input_ids"]).contiguous()
    return inputs


def _backward(model: nn.Module, rank: int) -> None:
    for step in range(2):
        model(**_rank_batch(rank, step)).token_logps.square().sum().backward()


def _full_gradients(model: nn.Module) -> list[Tensor]:
    found = []
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        gradient = parameter.grad
        found.append(gradient.full_tensor() if isinstance(gradient, DTensor) else gradient)
    return found


def _single_process_mean(family: str) -> list[Tensor]:
    sums: list[Tensor] | None = None
    for rank in range(RANKS):
        model = attach_fused_head(tiny_model(family, torch.float64))
        _backward(model, rank)
        found = _full_gradients(model)
        sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
    assert sums is not None
    return [value / RANKS for value in sums]


def _distribute(model: PreTrainedModel, layout: str) -> nn.Module:
    if layout == "ddp":
        return DistributedDataParallel(model)
    for layer in model.base_model.layers:
        fully_shard(layer)
    if layout == "fsdp2_own_unit":
        fully_shard(model.get_output_embeddings())
    return fully_shard(model)


def _check_gradients(family: str, layout: str) -> None:
    rank = dist.get_rank()
    model = _distribute(attach_fused_head(tiny_model(family, torch.float64)), layout)
    _backward(model, rank)
    found = _full_gradients(model)
    for name, mine, expected in zip(
        dict(model.named_parameters()), found, _single_process_mean(family), strict=True
    ):
        ranks = [torch.empty_like(mine) for _ in range(RANKS)]
        dist.all_gather(ranks, mine.contiguous())
        where = f"{family} {layout} {name}"
        assert torch.equal(ranks[0], ranks[1]), f"{where} differs between ranks"
        torch.testing.assert_close(mine, expected, msg=lambda text, where=where: where + text)


def _run_rank() -> None:
    torch.set_num_threads(1)
    _memory.THRESHOLD = 1  # gradients in recycled memory, as those of a large head
    dist.init_process_group("gloo")
    for family, layout in CASES:
        _check_gradients(family, layout)
    dist.barrier()
    os._exit(0)  # skip the shutdown of gloo and DDP, which is not under test


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_ranks_give_the_mean_gradient() -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(RANKS),
    }
    command = [sys.executable, "-m", "tests.hf.test_distributed"]
    processes = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        _wait(processes, seconds=60)
    finally:
        for process in processes:
            process.kill()
    outputs = [process.communicate()[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]


def _wait(processes: list[subprocess.Popen[str]], seconds: float) -> None:
    """Wait until all processes ended, one failed (the others then hang) or time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if None not in codes or any(codes):
            return
        time.sleep(0.1)


if __name__ == "__main__":
    _run_rank()
