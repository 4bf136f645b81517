"""Trains, dies of SIGKILL at random moments, goes on; run by test_kill.py in its own process.

The libraries are imported once and every run is a fork: twenty runs cost seconds, not minutes.
The parent computes nothing: a library with threads of its own does not survive a fork.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rao_kernels.train import RAOConfig, RAOTrainer, checkpoints
from tests import seeds
from tests.train.tiny import tiny_rows

KILLS = 20
STEPS = 60


def train(folder: Path, model: Path, *, steps: int = STEPS) -> None:
    config = RAOConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=1,
        save_total_limit=2,
        disable_tqdm=True,
        use_cpu=True,
        seed=seeds.shifted(42),
    )
    # More rows than a shard of the cache holds: it dies between shards too.
    run = RAOTrainer(str(model), args=config, train_dataset=tiny_rows(60))
    run.train(resume_from_checkpoint=True)


def check(folder: Path) -> None:
    """Load every checkpoint that is marked complete, whatever else is in the folder."""
    newest = checkpoints.newest_complete(folder)
    if newest is not None:
        AutoModelForCausalLM.from_pretrained(newest)
        torch.load(newest / "optimizer.pt", weights_only=True)
    for shard in folder.glob("ref_cache/ref-*/*.safetensors"):
        load_file(shard)


def warm(folder: Path, model: Path) -> None:
    """Training imports as it goes; the forks shall find these modules already there."""
    train(folder / "warm", model, steps=1)
    (folder / "modules").write_text("\n".join(sorted(sys.modules)))


def fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, model: Path) -> None:
    assert finish(fork(lambda: warm(folder, model))) == 0
    for name in (folder / "modules").read_text().split():
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    started = time.monotonic()
    assert finish(fork(lambda: train(folder / "timed", model, steps=10))) == 0
    once = time.monotonic() - started
    chance = random.Random(seeds.shifted())
    seen = []
    for _ in range(KILLS):
        child = fork(lambda: train(folder / "killed", model))
        time.sleep(chance.uniform(0.0, 0.6 * once))
        os.kill(child, signal.SIGKILL)
        assert finish(child) in (-signal.SIGKILL, 0)
        assert finish(fork(lambda: check(folder / "killed"))) == 0
        newest = checkpoints.newest_complete(folder / "killed")
        seen.append(-1 if newest is None else int(newest.name.split("-")[1]))
    assert seen == sorted(seen), f"a complete checkpoint was lost: {seen}"
    assert finish(fork(lambda: train(folder / "killed", model))) == 0
    assert finish(fork(lambda: train(folder / "straight", model))) == 0
    print("newest complete checkpoint after each kill:", seen)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
