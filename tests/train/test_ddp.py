"""Two gloo ranks against one process: the same loss, gradients, metrics and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.ddp_run import FULL, OF_ONE_WINDOW, PARTIAL, run
from tests.train.ranks import run_two_ranks


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    losses = ["rao", "sigmoid", "sft"]
    run_two_ranks("tests.train.ddp_run", str(tmp_path), ",".join([*losses, "kto"]))
    for rank, seen in ((0, "another process"), (1, "the first model.norm.weight")):
        diverged, used = torch.load(tmp_path / f"ends-rank{rank}.pt", weights_only=True)
        assert "diverged at step 2" in diverged and seen in diverged
        assert "metrics.jsonl" in used and "choose another output_dir" in used
    for case in OF_ONE_WINDOW:
        prompts = case[2]
        single = run(tmp_path / f"kto-{prompts}", "kto", min(4, prompts), 1, prompts)
        for rank in (0, 1):
            assert_same(tmp_path / f"kto-{'-'.join(map(str, case))}-rank{rank}.pt", single)
    for loss in losses:
        for cases, steps in ((FULL, 2), (PARTIAL[:2], 1), (PARTIAL[2:], 1)):
            prompts = cases[0][2]
            single = run(
                tmp_path / f"{loss}-{prompts}", loss, 4 if steps == 2 else prompts, 1, prompts
            )
            assert len(single["steps"]) == steps
            for case in cases:
                for rank in (0, 1):
                    label = "-".join(map(str, (loss, *case)))
                    assert_same(tmp_path / f"{label}-rank{rank}.pt", single)


def assert_same(path: Path, expected: dict[str, Any]) -> None:
    """Compare a rank's results with one process's: a repeated prompt must change nothing."""
    found = torch.load(path, weights_only=True)
    for step, own in zip(expected["steps"], found["steps"], strict=True):
        for name, gradient in step.items():
            torch.testing.assert_close(
                own[name], gradient, rtol=1e-3, atol=1e-6, msg=f"{path.name} {name}"
            )
    for before, after in zip(expected["history"], found["history"], strict=True):
        assert after == pytest.approx(before, rel=1e-3, abs=1e-5), path.name
    assert found["evaluation"] == pytest.approx(expected["evaluation"], rel=1e-3, abs=1e-5)
