"""Two gloo ranks train online as one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.online_ddp_run import CASES, RUNS, run
from tests.train.ranks import run_two_ranks


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    run_two_ranks("tests.train.online_ddp_run", str(tmp_path))
    single = {loss: run(tmp_path / f"{loss}-single", loss, 4, 1) for loss in CASES}
    for loss, batch, windows in RUNS:
        label, expected = f"{loss}-{batch}-{windows}", single[loss]
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{label}-rank{rank}.pt", weights_only=True)
            for name, tensor in expected["weights"].items():
                torch.testing.assert_close(
                    found["weights"][name], tensor, rtol=1e-4, atol=1e-6, msg=f"{label} {name}"
                )
            for name in ("loss", "reward/mean", "completions/mean_length"):
                assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), label
