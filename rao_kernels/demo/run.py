"""The stages of the demo, in order."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import logging

from . import compare, cost, picture, report
from .model import obtain_model
from .sampling import Answer, SamplingOptions, sample_answers
from .task import Task, make_tasks, reward


@dataclass(frozen=True)
class Settings:
    """Sizes and hyperparameters. The methods differ in loss alone: the same prompts, prompts per
    step, learning rate and beta."""

    train_prompts: int = 96
    held_out_prompts: int = 64
    scored_prompts: int = 32
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    methods: tuple[compare.Method, ...] = (
        compare.Method("RAO", "rao", beta=0.1, learning_rate=2e-5),
        compare.Method("DPO", "sigmoid", beta=0.1, learning_rate=2e-5),
    )
    seed: int = 1


class Clock:
    """Print the stage that begins, and keep the seconds of each."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        start = time.perf_counter()
        minutes, seconds = divmod(int(start - self.began), 60)
        print(f"\n[{minutes}:{seconds:02d}] {title}", flush=True)
        yield
        self.seconds[title] = time.perf_counter() - start


def run_demo(output: Path, settings: Settings, model: Path | None = None) -> report.Figures:
    """Run all stages, from the model's download to the picture; files go to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    with clock.stage("the model: SmolLM2-135M-Instruct"):
        start = obtain_model(output / "smollm2") if model is None else model
    # Models are loaded a dozen times from here on, each with a progress bar.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tasks = make_tasks(settings.train_prompts + settings.held_out_prompts, settings.seed)
    train, held_out = tasks[: settings.train_prompts], tasks[settings.train_prompts :]
    with clock.stage(f"the model answers {len(train)} prompts; a rule rewards the answers"):
        answers = _answers(start, train, settings, settings.seed, "answers")
        _write_rows(output / "train.jsonl", train, answers)
        _show(train, answers)
    rewards = {}
    with clock.stage(f"it answers {len(held_out)} held-out prompts, before training"):
        fresh = _answers(start, held_out, settings, settings.seed + 1, "before")
        rewards["before"] = _rewards(held_out, fresh)
        scored = settings.scored_prompts
        _write_rows(output / "held_out.jsonl", held_out[:scored], fresh[:scored])
        _write_pairs(output / "pairs.jsonl", held_out[:scored], fresh[:scored])
    runs = _train(start, output, settings, clock)
    with clock.stage("fresh answers to the held-out prompts, after training"):
        for name, run in runs.items():
            fresh = _answers(run.folder, held_out, settings, settings.seed + 1, name)
            rewards[name] = _rewards(held_out, fresh)
            _show(held_out, fresh)
    with clock.stage("implicit rewards of the start model's held-out answers"):
        implicit = _implicit(start, output, runs)
    with clock.stage("time and memory of the loss"):
        shape, costs = _costs(start, output)
    figures = report.Figures(rewards, runs, implicit, costs, shape, clock.seconds)
    report.write_json(figures, output / "demo.json")
    picture.draw(output / "demo.json", output / "demo.png")
    return figures


def _answers(
    model: Path, tasks: Sequence[Task], settings: Settings, seed: int, label: str
) -> list[list[Answer]]:
    prompts = [task.prompt for task in tasks]
    return sample_answers(model, prompts, settings.sampling, seed=seed, label=label)


def _rewards(tasks: Sequence[Task], answers: Sequence[Sequence[Answer]]) -> Tensor:
    """Return the rewards ``[P, answers]``."""
    return torch.tensor(
        [
            [reward(task, answer.text, answer.finished) for answer in row]
            for task, row in zip(tasks, answers, strict=True)
        ]
    )


def _write_rows(path: Path, tasks: Sequence[Task], answers: Sequence[Sequence[Answer]]) -> None:
    """Write records as `rao-kernels train` reads them."""
    rows = [
        {"prompt": task.prompt, "responses": [one.text for one in row], "rewards": rewards}
        for task, row, rewards in zip(
            tasks, answers, _rewards(tasks, answers).tolist(), strict=True
        )
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _write_pairs(path: Path, tasks: Sequence[Task], answers: Sequence[Sequence[Answer]]) -> None:
    """Write the best and the worst answer of every prompt whose answers differ in reward."""
    rewards = _rewards(tasks, answers)
    kept = [i for i, row in enumerate(rewards) if row.max() > row.min()]
    ends = [
        [answers[i][int(rewards[i].argmax())], answers[i][int(rewards[i].argmin())]] for i in kept
    ]
    _write_rows(path, [tasks[i] for i in kept], ends)


def _show(tasks: Sequence[Task], answers: Sequence[Sequence[Answer]]) -> None:
    """Print the mean reward, and the first answer to the first prompts."""
    rewards = _rewards(tasks, answers)
    print(f"mean reward {float(rewards.mean()):.3f}; for example")
    for task, row, values in list(zip(tasks, answers, rewards.tolist(), strict=True))[:3]:
        print(f"  {', '.join(task.words)} -> {row[0].text!r} ({values[0]:.2f})")


def _train(start: Path, output: Path, settings: Settings, clock: Clock) -> dict[str, compare.Run]:
    """Train each method from the same start, evaluated on the same held-out pairs."""
    rows = compare.tokenized_rows(start, output / "train.jsonl")
    prefix = compare.shared_prefix(rows)
    runs = {}
    for method in settings.methods:
        with clock.stage(f"{method.name}: reference log-probs cached once, then training"):
            runs[method.name] = compare.train(
                method, start, output / "train.jsonl", output / "pairs.jsonl", output, prefix
            )
    return runs


def _implicit(
    start: Path, output: Path, runs: dict[str, compare.Run]
) -> dict[str, compare.Implicit]:
    rows = compare.tokenized_rows(start, output / "held_out.jsonl")
    prefix = compare.shared_prefix(compare.tokenized_rows(start, output / "train.jsonl"))
    before = compare.score_rows(start, rows, prefix, "before")
    return {
        name: compare.implicit_rewards(
            rows, before, compare.score_rows(run.folder, rows, prefix, name)
        )
        for name, run in runs.items()
    }


def _costs(start: Path, output: Path) -> tuple[str, dict[str, cost.Cost]]:
    rows = compare.tokenized_rows(start, output / "train.jsonl")
    problem = cost.make_problem(start, rows[:4], compare.shared_prefix(rows))
    return problem.shape, cost.measure(problem)
