"""Annotates with a rule, and dies of SIGKILL; run by test_annotate.py in its own process.

Each call of the rule is written to a file, so that calls are counted over all processes.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from rao_kernels.rewards import AnnotateOptions, RuleScorer, annotate


def run(folder: Path, output: str, calls: str, die_at: int) -> None:
    seen = 0

    def rule(prompts: Any, completions: list[str], **_: Any) -> list[float]:
        nonlocal seen
        with open(folder / calls, "a") as file:
            file.writelines(f"{completion}\n" for completion in completions)
        seen += 1
        if seen == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return [len(completion) + 0.1 for completion in completions]

    options = AnnotateOptions(batch_size=3)
    annotate(folder / "data.jsonl", folder / output, RuleScorer(rule), options)
