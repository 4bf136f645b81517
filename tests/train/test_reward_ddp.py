"""A reward model on two gloo ranks against one process, with a last step that is not full."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.train.ranks import run_two_ranks
from tests.train.reward_ddp_run import run


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    run_two_ranks("tests.train.reward_ddp_run", str(tmp_path), "2")
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
