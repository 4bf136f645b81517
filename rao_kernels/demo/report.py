"""The demo's figures as a table, sentences and a JSON file, which `picture` draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .compare import Implicit, Run
from .cost import Cost

_PREFERRED, _REJECTED = "logps/chosen", "logps/rejected"


@dataclass(frozen=True)
class Figures:
    """All measurements of the demo.

    rewards: "before" and each method -> ``[P, answers]`` rewards of fresh answers to held-out
    prompts. runs, implicit: by method. costs: by implementation.
    """

    rewards: dict[str, Tensor]
    runs: dict[str, Run]
    implicit: dict[str, Implicit]
    costs: dict[str, Cost]
    cost_shape: str
    seconds: dict[str, float]


def mean_and_error(rewards: Tensor) -> tuple[float, float]:
    """Return the mean of ``[P, answers]`` rewards and its standard error over prompts."""
    means = rewards.mean(1)
    return float(means.mean()), float(means.std() / len(means) ** 0.5)


def implicit_reward(run: Run, seen: Implicit) -> Tensor:
    """Return the rewards of answers that the trained model implies.

    RAO: ``beta (D + DX + log_z0)``, in the units of the rule's reward. DPO: ``beta D``, up to a
    constant for each prompt.
    """
    offset = seen.prompt_log_ratio + run.log_z0 if run.method.loss == "rao" else 0.0
    return run.method.beta * (seen.log_ratio + offset)


def correlation_within_prompts(left: Tensor, right: Tensor, groups: Tensor) -> float:
    """Return the Pearson correlation after each prompt's mean is subtracted from both."""
    counts = groups.bincount()
    centred = [
        value - (value.new_zeros(len(counts)).index_add(0, groups, value) / counts)[groups]
        for value in (left, right)
    ]
    return float(torch.corrcoef(torch.stack(centred))[0, 1])


def table(figures: Figures) -> str:
    """Return the figures as a text table."""
    names = ["before", *figures.runs]
    lines = [f"{'':<40}" + "".join(f"{name:>17}" for name in names)]

    def row(label: str, cells: Sequence[str]) -> None:
        lines.append(f"{label:<40}" + "".join(f"{cell:>17}" for cell in cells))

    rewards = [figures.rewards[name] for name in names]
    row("mean reward, fresh held-out answers", [_with_error(*mean_and_error(r)) for r in rewards])
    row("  share with all three words", [f"{float((r == 1).float().mean()):.0%}" for r in rewards])
    for label, metric in (("preferred", _PREFERRED), ("rejected", _REJECTED)):
        row(f"log-prob of {label} answers, nats", [
            f"{next(iter(figures.runs.values())).curves[metric][1][0]:.1f}",
            *(f"{run.curves[metric][1][-1]:.1f}" for run in figures.runs.values()),
        ])  # fmt: skip
    row("implicit against explicit reward, r", ["", *map(_correlation, *_by_method(figures))])
    row("training, steps", ["", *(str(run.steps) for run in figures.runs.values())])
    row("training, seconds", ["", *(f"{run.seconds:.0f}" for run in figures.runs.values())])
    return "\n".join([*lines, "", *_cost_lines(figures)])


def _by_method(figures: Figures) -> tuple[list[Run], list[Implicit]]:
    return list(figures.runs.values()), list(figures.implicit.values())


def _correlation(run: Run, seen: Implicit) -> str:
    value = correlation_within_prompts(implicit_reward(run, seen), seen.explicit, seen.groups)
    return f"{value:.2f}"


def _with_error(mean: float, error: float) -> str:
    return f"{mean:.3f} +- {error:.3f}"


def _cost_lines(figures: Figures) -> list[str]:
    lines = [f"the loss, forward and backward, at the demo's shapes ({figures.cost_shape});"]
    lines += ["the two losses differ by the rounding of bf16 logits, which only plain torch has:"]
    lines += [
        f"  {name:<14}{cost.seconds * 1e3:>8.0f} ms{cost.peak_bytes / 2**20:>8.0f} MiB peak"
        f"   loss {cost.loss:.6f}"
        for name, cost in figures.costs.items()
    ]
    return lines


def findings(figures: Figures) -> str:
    """Return sentences on what changed, favourable or not."""
    lines = []
    before = figures.rewards["before"].mean(1)
    for name, run in figures.runs.items():
        gain = _with_error(*mean_and_error((figures.rewards[name].mean(1) - before)[:, None]))
        moved = {
            metric: run.curves[metric][1][-1] - run.curves[metric][1][0]
            for metric in (_PREFERRED, _REJECTED)
        }
        lines.append(
            f"{name}: mean reward changed by {gain}; preferred answers moved by "
            f"{moved[_PREFERRED]:+.1f} nats, rejected ones by {moved[_REJECTED]:+.1f}."
        )
    if {"RAO", "DPO"} <= figures.rewards.keys():
        gap = (figures.rewards["RAO"].mean(1) - figures.rewards["DPO"].mean(1))[:, None]
        lines.append(f"RAO minus DPO, prompt by prompt: {_with_error(*mean_and_error(gap))}.")
    lines.append(
        "+- is one standard error over held-out prompts of this one run; another seed moves both."
    )
    return "\n".join(lines)


def write_json(figures: Figures, path: Path) -> None:
    """Write every number of the table and the picture."""
    content: dict[str, Any] = {
        "rewards": {
            name: dict(zip(("mean", "standard_error"), mean_and_error(value), strict=True))
            for name, value in figures.rewards.items()
        },
        "runs": {name: _run_json(run) for name, run in figures.runs.items()},
        "implicit_explicit_correlation": {
            name: float(_correlation(run, figures.implicit[name]))
            for name, run in figures.runs.items()
        },
        "implicit_rewards": {
            name: _implicit_json(implicit_reward(run, figures.implicit[name]), explicit)
            for name, run in figures.runs.items()
            for explicit in [figures.implicit[name].explicit]
        },
        "loss_cost": {
            "shape": figures.cost_shape,
            **{
                name: {"seconds": cost.seconds, "peak_bytes": cost.peak_bytes}
                for name, cost in figures.costs.items()
            },
        },
        "stage_seconds": figures.seconds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def _implicit_json(implicit: Tensor, explicit: Tensor) -> dict[str, list[float]]:
    """Return the mean and standard error of the implicit reward at each value of the rule's."""
    levels = explicit.unique()
    parts = [implicit[explicit == level] for level in levels]
    return {
        "reward": levels.tolist(),
        "mean": [float(part.mean()) for part in parts],
        "standard_error": [float(part.std(correction=0) / len(part) ** 0.5) for part in parts],
    }


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "loss": run.method.loss,
        "beta": run.method.beta,
        "learning_rate": run.method.learning_rate,
        "steps": run.steps,
        "seconds": run.seconds,
        "log_z0": run.log_z0,
        "held_out_pairs": {metric: run.curves[metric] for metric in (_PREFERRED, _REJECTED)},
    }
