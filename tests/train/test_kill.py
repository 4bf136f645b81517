"""kill -9 at twenty random moments: cache and checkpoints stay usable, the result is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rao_kernels.train import checkpoints
from tests.train.killed_run import STEPS
from tests.train.tiny import save_tiny

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_twenty_times(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.killed_run", str(tmp_path), str(model)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout.splitlines()[-1])
    weights = []
    for name in ("killed", "straight"):
        newest = checkpoints.newest_complete(tmp_path / name)
        assert newest is not None
        assert newest.name == f"checkpoint-{STEPS}"
        weights.append(load_file(newest / "model.safetensors"))
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
