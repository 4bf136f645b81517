"""A reward that a tiny model learns within seconds, and online trainers of tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from rao_kernels.rewards import Candidate
from rao_kernels.train import OnlineConfig, OnlineTrainer
from tests import seeds
from tests.train.tiny import tiny_model, tiny_tokenizer

TOKENS = 6
PROMPTS = [
    {"prompt": f"say {letter}", "gold": "aaaaa", "number": n} for n, letter in enumerate("bcdefgh")
]


class Letters:
    """Rewards the share of the letter a among the tokens that a response may have."""

    def __init__(self) -> None:
        self.seen: list[Candidate] = []

    def describe(self) -> dict[str, Any]:
        return {"rule": "letters"}

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        self.seen += candidates
        return [str(one.response).count("a") / TOKENS for one in candidates]


def config(folder: Path, **changes: Any) -> OnlineConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "loss": "grpo",
        "rounds": 2,
        "prompts_per_round": 4,
        "responses_per_prompt": 4,
        "max_new_tokens": TOKENS,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": seeds.shifted(42),
    }
    return OnlineConfig(**{**settings, **changes})


def make(
    folder: Path, *callbacks: TrainerCallback, model: Any = None, given: Any = None, **changes: Any
) -> OnlineTrainer:
    """Make a trainer; given: further arguments of `OnlineTrainer`."""
    torch.set_num_threads(1)
    return OnlineTrainer(
        tiny_model() if model is None else model,
        args=config(folder, **changes),
        processing_class=tiny_tokenizer(),
        callbacks=list(callbacks),
        **{"scorer": Letters(), "train_dataset": PROMPTS, **(given or {})},
    )


def weights(trainer: OnlineTrainer) -> dict[str, torch.Tensor]:
    model: Any = trainer.model
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def logged(trainer: OnlineTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]
