"""A reward model on two gloo ranks against one process, with a last step that is not full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.reward_ddp_run import run

ROOT = Path(__file__).parents[2]


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", "-m", "tests.train.reward_ddp_run", str(tmp_path), "2"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    single = run(tmp_path / "single", 4)
    assert len(single["steps"]) == 2
    for rank in (0, 1):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        for name, weight in single["weights"].items():
            torch.testing.assert_close(
                torch.tensor(found["weights"][name]),
                torch.tensor(weight),
                rtol=1e-4,
                atol=1e-6,
                msg=name,
            )
        for own, expected in zip(found["steps"], single["steps"], strict=True):
            assert own == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert found["evaluation"] == pytest.approx(single["evaluation"], rel=1e-3, abs=1e-5)
        report, expected = found["report"], single["report"]
        assert report["pairs"] == 5
        for name in ("loss", "accuracy", "margin", "ece"):
            assert report[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
