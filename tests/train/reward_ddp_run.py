"""One rank of a reward model's training; writes what test_reward_ddp.py compares."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from rao_kernels.train import RewardConfig, RewardTrainer
from tests.rewards.models import tiny_reward_model
from tests.train.tiny import tiny_rows, tiny_tokenizer


def run(folder: Path, size: int) -> dict[str, Any]:
    """Train on five pairs, `size` per rank and micro-batch."""
    torch.set_num_threads(1)
    rows = tiny_rows(5, responses=(2, 3))
    trainer = RewardTrainer(
        tiny_reward_model(),
        args=RewardConfig(
            output_dir=str(folder / "out"),
            num_train_epochs=1,
            per_device_train_batch_size=size,
            per_device_eval_batch_size=2,
            train_sampling_strategy="sequential",
            optim="sgd",
            learning_rate=1e-2,
            center_rewards_coefficient=0.01,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tiny_tokenizer(chat=True),
    )
    assert len(trainer.train_dataset) == 5
    trainer.train()
    report = trainer.report()
    assert report is not None
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    names = ("loss", "rewards/margins", "rewards/accuracies", "rewards/all_std")
    return {
        "weights": {name: one.tolist() for name, one in trainer.model.state_dict().items()},
        "steps": [
            [entry[name] for name in names]
            for entry in trainer.state.log_history
            if "loss" in entry
        ],
        "evaluation": [evaluations[-1][f"eval_{name}"] for name in names],
        "report": dataclasses.asdict(report),
    }


if __name__ == "__main__":
    result = run(Path(sys.argv[1]), int(sys.argv[2]))
    Path(sys.argv[1], f"rank{os.environ['RANK']}.json").write_text(json.dumps(result))
