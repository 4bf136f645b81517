"""One rank of runs that are resumed in mid-epoch; writes what test_ddp_resume.py compares."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from rao_kernels.train import RAOConfig, RAOTrainer, RewardConfig, RewardTrainer
from tests import seeds
from tests.rewards.models import tiny_reward_model
from tests.train.ranks import leave
from tests.train.tiny import tiny_model, tiny_rows, tiny_tokenizer

# By two per rank: a step of four on two ranks, and one of three and a prompt that is repeated.
PROMPTS = 7


def make(folder: Path, kind: str) -> RAOTrainer | RewardTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": seeds.shifted(42),
        "ddp_backend": "gloo",
    }
    rows = tiny_rows(PROMPTS, responses=(2, 3))
    if kind == "reward":
        tokenizer = tiny_tokenizer(chat=True)
        reward = RewardConfig(**settings)
        model = tiny_reward_model()
        return RewardTrainer(model, args=reward, train_dataset=rows, processing_class=tokenizer)
    args = RAOConfig(**settings, loss=kind)
    return RAOTrainer(
        tiny_model(), args=args, train_dataset=rows, processing_class=tiny_tokenizer()
    )


def run(folder: Path, kind: str, checkpoint: str | None) -> dict[str, Any]:
    trainer = make(folder, kind)
    assert len(trainer.train_dataset) == PROMPTS
    trainer.train(checkpoint and str(folder / checkpoint))
    model: Any = trainer.model
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": trainer.state.global_step,
        "weights": {name: one.detach().clone() for name, one in model.state_dict().items()},
        "metrics": {name: one for name, one in logged[-1].items() if "/" in name or name == "loss"},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    for kind in sys.argv[2:]:
        found = [run(out / kind, kind, checkpoint) for checkpoint in (None, "checkpoint-1")]
        torch.save(found, out / f"{kind}-rank{os.environ['RANK']}.pt")
    leave()
