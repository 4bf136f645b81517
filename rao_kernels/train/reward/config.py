"""`RewardConfig`: settings of a reward model's training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import InputError
from ..config import RunConfig

Margin = Literal["column", "rewards", "none"]


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class RewardConfig(RunConfig):
    """Settings of `RewardTrainer`, beside all of `transformers.TrainingArguments`.

    Batch sizes count pairs.

    Raises:
        InputError: a setting is out of range, or settings do not work together.
    """

    learning_rate: float = _option(
        1e-5, "Peak learning rate. LoRA takes about 10 times a full model's."
    )
    center_rewards_coefficient: float = _option(
        0.0,
        "Weight of (r_w + r_l)^2, which pulls the rewards towards mean zero; 0.01 is usual. The "
        "loss without it does not determine their level.",
    )
    margin: Margin = _option(
        "column",
        "By how much the chosen response is to win: the column `margin` of the pairs that have "
        "one; 'rewards': the difference of the pair's rewards; 'none'.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming:
            fix = "Its pairs stay in memory."
            raise InputError("streaming", "False for a reward model", True, fix)
        if not 0.0 <= self.center_rewards_coefficient < math.inf:
            got = self.center_rewards_coefficient
            raise InputError("center_rewards_coefficient", "a finite number from 0 on", got)
        if self.margin not in ("column", "rewards", "none"):
            raise InputError("margin", "'column', 'rewards' or 'none'", repr(self.margin))
