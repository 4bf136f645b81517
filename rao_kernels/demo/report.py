"""What was measured, as a table, a JSON file and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from .compare import Implicit, Run
from .cost import Cost

_COLORS = {"RAO": "tab:blue", "DPO": "tab:orange", "before": "tab:gray"}
_PREFERRED, _REJECTED = "logps/chosen", "logps/rejected"


@dataclass(frozen=True)
class Figures:
    """Everything the demo measured.

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
    """Mean of ``[P, answers]`` rewards and its standard error over prompts."""
    means = rewards.mean(1)
    return float(means.mean()), float(means.std() / len(means) ** 0.5)


def implicit_reward(run: Run, seen: Implicit) -> Tensor:
    """What the trained model says an answer is worth.

    RAO: ``beta (D + DX + log_z0)``, in the units of the rule's reward. DPO: ``beta D``, up to a
    constant for each prompt.
    """
    offset = seen.prompt_log_ratio + run.log_z0 if run.method.loss == "rao" else 0.0
    return run.method.beta * (seen.log_ratio + offset)


def correlation_within_prompts(left: Tensor, right: Tensor, groups: Tensor) -> float:
    """Pearson correlation after each prompt's mean is taken out of both."""
    counts = groups.bincount()
    centred = [
        value - (value.new_zeros(len(counts)).index_add(0, groups, value) / counts)[groups]
        for value in (left, right)
    ]
    return float(torch.corrcoef(torch.stack(centred))[0, 1])


def table(figures: Figures) -> str:
    """The figures as text."""
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
    """What the figures say, favourable or not."""
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
    """Every number of the table and the curves."""
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


def draw(figures: Figures, path: Path) -> None:
    """Four panels: rewards, log-probs over the run, implicit against explicit, cost."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(2, 2, number) for number in range(1, 5)]
    _draw_rewards(axes[0], figures.rewards)
    _draw_logps(axes[1], figures.runs)
    _draw_implicit(axes[2], figures)
    _draw_costs(axes[3], figures)
    figure.savefig(path, dpi=110)


def _draw_rewards(axes: Axes, rewards: Mapping[str, Tensor]) -> None:
    for name, value in rewards.items():
        mean, error = mean_and_error(value)
        bar = axes.bar(name, mean, yerr=error, color=_COLORS[name], capsize=6)
        axes.bar_label(bar, [f"{mean:.3f}"], padding=6)
    axes.set(title="mean reward of fresh held-out answers", ylim=(0, 1))


def _draw_logps(axes: Axes, runs: Mapping[str, Run]) -> None:
    styles = {_PREFERRED: ("preferred", "o-"), _REJECTED: ("rejected", "o--")}
    for name, run in runs.items():
        for metric, (label, style) in styles.items():
            axes.plot(*run.curves[metric], style, color=_COLORS[name], label=f"{name}, {label}")
    axes.set(title="log-prob of held-out answers of the start model", xlabel="step", ylabel="nats")
    axes.legend(fontsize="small")


def _draw_implicit(axes: Axes, figures: Figures) -> None:
    """One point per value of the rule's reward: mean and standard error of the implicit one."""
    for name, run in figures.runs.items():
        seen = figures.implicit[name]
        implicit, levels = implicit_reward(run, seen), seen.explicit.unique()
        parts = [implicit[seen.explicit == level] for level in levels]
        means = [float(part.mean()) for part in parts]
        errors = [float(part.std(correction=0) / len(part) ** 0.5) for part in parts]
        axes.errorbar(
            levels.tolist(), means, errors, fmt="o-", capsize=4, color=_COLORS[name], label=name
        )
    axes.plot([0, 1], [0, 1], ":", color="black", label="equal")
    axes.set(
        title="implicit against explicit reward, held-out answers",
        xlabel="reward of the rule",
        ylabel="implicit reward",
    )
    axes.legend(fontsize="small")


def _draw_costs(axes: Axes, figures: Figures) -> None:
    plain = figures.costs["plain torch"]
    for offset, (name, cost) in zip((-0.2, 0.2), figures.costs.items(), strict=True):
        shares = [cost.seconds / plain.seconds, cost.peak_bytes / plain.peak_bytes]
        bars = axes.bar([offset, 1 + offset], shares, width=0.36, label=name)
        labels = [f"{cost.seconds * 1e3:.0f} ms", f"{cost.peak_bytes / 2**20:.0f} MiB"]
        axes.bar_label(bars, labels)
    axes.set(title="cost of the loss (plain torch logits = 1)", xticks=[0, 1], ylim=(0, 1.25))
    axes.set_xticklabels(["time", "peak memory"])
    axes.legend(fontsize="small")
