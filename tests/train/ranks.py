"""Start a program in two processes, as torchrun does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def run_two_ranks(module: str, *arguments: str) -> str:
    """Run a module in two processes of one thread each; return what they print."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", "-m", module, *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def leave() -> None:
    """End a rank when all have come to their ends: none closes connections that others use."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
