"""Records to be scored, and scorers of them whose rewards are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rao_kernels.rewards import JudgeScorer

from .models import StubJudge

Rows = list[dict[str, Any]]


def length(prompts: Any, completions: Sequence[Any], **_: Any) -> list[float]:
    """The length of a text, or of all contents of messages."""
    return [
        float(len(one) if isinstance(one, str) else sum(len(turn["content"]) for turn in one))
        for one in completions
    ]


def unscored(count: int) -> Rows:
    return [
        {
            "prompt": f"ask {number}",
            "responses": ["x" * (number + 1), "y" * (2 * number + 1)],
            "source": {"nested": [number, None, 0.1]},
        }
        for number in range(count)
    ]


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


def judged(*unreadable: str) -> JudgeScorer:
    """A judge that counts letters, and has no number for some responses."""

    def answer(asked: str) -> str:
        return "no idea" if asked in unreadable else f"Score: {len(asked)}"

    return JudgeScorer(StubJudge(answer), template="{response}")
