"""Two gloo ranks that are resumed in mid-epoch end as those that were not interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.ranks import run_two_ranks


def test_prompts_that_ranks_repeat_count_nothing_after_resuming(tmp_path: Path) -> None:
    kinds = ("rao", "reward")
    run_two_ranks("tests.train.ddp_resume_run", str(tmp_path), *kinds)
    for kind in kinds:
        for rank in (0, 1):
            path = tmp_path / f"{kind}-rank{rank}.pt"
            whole, resumed = torch.load(path, weights_only=True)
            assert whole["steps"] == resumed["steps"] == 2
            for name, weight in whole["weights"].items():
                torch.testing.assert_close(
                    resumed["weights"][name], weight, rtol=1e-5, atol=1e-7, msg=f"{kind} {name}"
                )
            assert resumed["metrics"] == pytest.approx(whole["metrics"], rel=1e-5, abs=1e-7), kind
