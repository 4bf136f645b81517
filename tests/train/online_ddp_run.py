"""One rank of an online run; writes its weights and metrics for test_online_ddp.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rao_kernels.generation import Sample, SamplingOptions
from tests.train.online_tools import logged, make, weights
from tests.train.ranks import leave

CASES: dict[str, dict[str, Any]] = {
    "grpo": {"inner_epochs": 2},
    "ppo": {"inner_epochs": 2},
    "kimi": {"refresh_reference_every": 2},
}
# Loss, prompts of a micro-batch on each rank, micro-batches of a step.
RUNS = (("grpo", 2, 1), ("grpo", 1, 2), ("ppo", 1, 2), ("kimi", 2, 1))


class Fixed:
    """Samples what the prompt alone decides, so that ranks sample what one process does."""

    def check(self, prompts: Sequence[Sequence[int]], options: SamplingOptions) -> None:
        """Take any prompts."""

    def sample(
        self, prompts: Sequence[Sequence[int]], options: SamplingOptions, *, seed: int
    ) -> list[list[Sample]]:
        groups = []
        for prompt in prompts:
            ids = [[5 + (prompt[-1] * (j + 1) + t * j) % 4 for t in range(4)] for j in range(4)]
            groups.append([Sample(one, "".join("abcd"[i - 5] for i in one), True) for one in ids])
        return groups


def run(folder: Path, loss: str, batch: int, windows: int) -> dict[str, Any]:
    """Train for three rounds, with micro-batches of `batch` prompts per rank."""
    trainer = make(
        folder / "out",
        loss=loss,
        rounds=3,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=windows,
        optim="sgd",
        max_grad_norm=0.0,
        ddp_backend="gloo" if "RANK" in os.environ else None,
        given={"sampler": Fixed()},
        **CASES[loss],
    )
    trainer.train()
    names = ("loss", "reward/mean", "completions/mean_length")
    return {"weights": weights(trainer), **{name: logged(trainer, name) for name in names}}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    for loss, batch, windows in RUNS:
        label = f"{loss}-{batch}-{windows}"
        result = run(out / label, loss, batch, windows)
        torch.save(result, out / f"{label}-rank{os.environ['RANK']}.pt")
    leave()
