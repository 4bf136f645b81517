"""Train with a method, and score held-out answers before and after."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..data import Collator, PreferenceDataset, TokenizedRow, TokenizeOptions, load_records
from ..data import tokenize_records as tokenize
from ..hf import attach_fused_head
from ..refcache import RowValues, score_batch
from ..train import RAOConfig, RAOTrainer, checkpoints
from ..types import EngineOptions


@dataclass(frozen=True)
class Method:
    """A loss of the table and its hyperparameters."""

    name: str
    loss: str
    beta: float
    learning_rate: float


@dataclass(frozen=True)
class Run:
    """A finished training run. curves: metric -> (steps, values) on the held-out pairs."""

    method: Method
    folder: Path
    seconds: float
    steps: int
    log_z0: float
    curves: dict[str, tuple[list[int], list[float]]]


@dataclass(frozen=True)
class Implicit:
    """Rewards and log-ratios of held-out answers, ``[answers]`` each.

    explicit: the rule's reward. log_ratio: log-prob minus that of the start model, nats.
    prompt_log_ratio: the same for the answer's prompt. groups: index of the prompt.
    """

    explicit: Tensor
    log_ratio: Tensor
    prompt_log_ratio: Tensor
    groups: Tensor


def train(
    method: Method, start: Path, train_file: Path, eval_file: Path, output: Path, prefix_length: int
) -> Run:
    """Train the model in `start` on `train_file` and save it; `eval_file` holds held-out pairs."""
    folder = output / method.name.lower()
    if (folder / checkpoints.STATE).exists():
        shutil.rmtree(folder)  # the model of a demo before this one
    config = RAOConfig(
        output_dir=str(folder),
        ref_cache_dir=str(output / "ref_cache"),
        loss=method.loss,
        beta=method.beta,
        learning_rate=method.learning_rate,
        prefix_length=prefix_length,
        num_train_epochs=1,
        warmup_steps=4,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=8,
        eval_strategy="steps",
        eval_steps=6,
        eval_on_start=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=True,
        use_cpu=True,
        seed=0,
    )
    trainer = RAOTrainer(
        AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        args=config,
        train_dataset=str(train_file),
        eval_dataset=str(eval_file),
        processing_class=AutoTokenizer.from_pretrained(start),
        callbacks=[_Bar(method.name)],
    )
    trainer.remove_callback(ProgressCallback)
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    trainer.save_model()
    history = trainer.state.log_history
    names = {name for entry in history for name in entry if name.startswith("eval_")}
    return Run(
        method,
        folder,
        seconds,
        trainer.state.global_step,
        float(trainer.hyper.get("log_z0", 0.0)),
        {name.removeprefix("eval_"): _curve(history, name) for name in sorted(names)},
    )


def _curve(history: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    entries = [entry for entry in history if name in entry]
    return [entry["step"] for entry in entries], [entry[name] for entry in entries]


class _Bar(TrainerCallback):
    """A progress bar with loss and margin, where the trainer's own prints every metric."""

    def __init__(self, label: str) -> None:
        self.label = label

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.bar = tqdm(total=state.max_steps, desc=self.label, unit="step")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        shown = {"loss": "loss", "margin": "rewards/margins"}
        last = state.log_history[-1]
        if "loss" in last:
            self.bar.set_postfix({label: f"{last[name]:.3f}" for label, name in shown.items()})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.bar.close()


def tokenized_rows(folder: Path, file: Path) -> list[TokenizedRow]:
    """Return the tokenized records of a file, as the trainer makes them."""
    return tokenize(load_records(file), AutoTokenizer.from_pretrained(folder), TokenizeOptions())


def shared_prefix(rows: Sequence[TokenizedRow]) -> int:
    """Return the number of tokens that all prompts share at their start, RAO's t0."""
    prompts = [row.prompt.tolist() for row in rows]
    shortest, first = min(map(len, prompts)), prompts[0]
    differ = (
        position
        for position in range(shortest)
        if any(prompt[position] != first[position] for prompt in prompts)
    )
    return next(differ, shortest)


@torch.inference_mode()
def score_rows(
    folder: Path, rows: Sequence[TokenizedRow], prefix_length: int, label: str
) -> list[RowValues]:
    """Return log-probs of every record's prompt and responses under the model in `folder`."""
    model = attach_fused_head(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    pad = model.config.pad_token_id
    dataset = PreferenceDataset(rows)
    collate = Collator(0 if pad is None else pad, prefix_length)
    values: list[RowValues] = []
    for start in tqdm(range(0, len(rows), 4), desc=label, unit="batch"):
        batch = collate([dataset[i] for i in range(start, min(start + 4, len(rows)))])
        with torch.autocast("cpu", torch.bfloat16):
            values += score_batch(
                model,
                batch,
                engine_options=EngineOptions(),
                per_token=False,
            )
    return values


def implicit_rewards(
    rows: Sequence[TokenizedRow], before: Sequence[RowValues], after: Sequence[RowValues]
) -> Implicit:
    """Return the log-ratios of the model after training to the one before, and the rule's
    rewards."""
    both = list(zip(before, after, strict=True))
    counts = torch.tensor([len(row.responses) for row in rows])
    prompt = torch.tensor([new.prompt - old.prompt for old, new in both])
    return Implicit(
        torch.tensor([reward for row in rows for reward in row.rewards or ()]),
        torch.cat([new.responses - old.responses for old, new in both]),
        prompt.repeat_interleave(counts),
        torch.arange(len(rows)).repeat_interleave(counts),
    )
