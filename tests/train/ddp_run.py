"""One rank of a training run; writes its gradients, losses and evaluation for test_ddp.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from rao_kernels.errors import DivergedError, InputError
from rao_kernels.train import RAOConfig, RAOTrainer
from tests import seeds
from tests.train.ranks import leave
from tests.train.rich import rich_dataset
from tests.train.tiny import tiny_model, tiny_rows, tiny_tokenizer

# Prompts per rank and micro-batch, micro-batches, prompts in all. Eight prompts make two full steps
# of four on two ranks. Of three and of five, ranks repeat some: one of their own micro-batch's
# prompts, or all of them.
FULL = ((2, 1, 8), (1, 2, 8))
PARTIAL = ((2, 1, 3), (1, 2, 3), (2, 2, 5))
# KTO's level is a mean over the micro-batches of all ranks, and so depends on how a step is cut.
OF_ONE_WINDOW = ((2, 1, 8), (2, 1, 3))


def run(folder: Path, loss: str, size: int, windows: int, prompts: int) -> dict[str, Any]:
    """Train on `prompts` prompts, by `size` per rank and micro-batch."""
    from tests.train.test_trainer import Gradients

    gradients = Gradients()
    trainer = make(folder, gradients, loss, size, windows, prompts)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": gradients.steps,
        "history": [_numbers(entry, "loss") for entry in history],
        "evaluation": _numbers(trainer.evaluate(), "eval_loss") if trainer.eval_dataset else {},
    }


class Spoil(TrainerCallback):
    """Makes a weight of the second rank NaN in the second step."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 1 and args.process_index == 1:
            given["model"].model.norm.weight.data[0] = torch.nan


def ends(folder: Path) -> list[str]:
    """Return the errors of a run that one rank spoils, and of another run in its folder."""
    said = []
    for callback in (Spoil(), None):
        trainer = make(folder, callback, "rao", 2, 1)
        try:
            trainer.train()
        except (DivergedError, InputError) as error:
            said.append(str(error))
    return said


def make(
    folder: Path,
    gradients: TrainerCallback | None,
    loss: str,
    size: int,
    windows: int,
    prompts: int = 8,
) -> RAOTrainer:
    torch.set_num_threads(1)
    kto = loss == "kto"
    return RAOTrainer(
        tiny_model(),
        # Another model: at margins of exactly zero, accuracies would compare rounding errors.
        tiny_model(1),
        args=RAOConfig(
            output_dir=str(folder / "out"),
            loss=loss,
            packing=kto,
            num_train_epochs=1,
            per_device_train_batch_size=size,
            per_device_eval_batch_size=2,
            gradient_accumulation_steps=windows,
            learning_rate=1e-2,
            max_grad_norm=0.0,
            optim="sgd",
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=seeds.shifted(42),
            ddp_backend="gloo" if "RANK" in os.environ else None,
        ),
        train_dataset=rich_dataset(prompts) if kto else tiny_rows(prompts, responses=(2, 4, 3)),
        eval_dataset=None if kto else tiny_rows(5, responses=(3, 2)),
        processing_class=tiny_tokenizer(),
        callbacks=None if gradients is None else [gradients],
    )


def _numbers(entry: dict[str, float], loss: str) -> dict[str, float]:
    """The loss and our metrics, without clocks."""
    return {name: value for name, value in entry.items() if "/" in name or name == loss}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    for name in sys.argv[2].split(","):
        for case in OF_ONE_WINDOW if name == "kto" else FULL + PARTIAL:
            label = "-".join(map(str, (name, *case)))
            result = run(out / label, name, *case)
            torch.save(result, out / f"{label}-rank{os.environ['RANK']}.pt")
    torch.save(ends(out / "ends"), out / f"ends-rank{os.environ['RANK']}.pt")
    leave()
