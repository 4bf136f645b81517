"""Record a run in metrics.jsonl and draw it in run.png."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .. import _plot
from ..refcache import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS_FILE = "metrics.jsonl"
PLOT_FILE = "run.png"


@dataclass(frozen=True)
class Panel:
    """A panel of run.png. curves: metric -> label."""

    title: str
    curves: dict[str, str]


# Measures of progress first, then those that explain a lack of it.
PANELS = (
    Panel("Mean reward of sampled responses", {"reward/mean": "mean"}),
    Panel("Loss", {"loss": "loss"}),
    Panel("Share of tokens that are the most probable", {"mean_token_accuracy": "accuracy"}),
    Panel("Reward margin: chosen minus rejected", {"rewards/margins": "margin"}),
    Panel("Mean implicit reward", {"rewards/mean": "mean"}),
    Panel("Accuracy: chosen ranked above rejected", {"rewards/accuracies": "accuracy"}),
    Panel("Implicit reward", {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}),
    Panel("Log-prob of responses, nats", {"logps/chosen": "chosen", "logps/rejected": "rejected"}),
    Panel("Mean log-prob of responses, nats", {"logps/mean": "mean"}),
    Panel("Entropy of the policy, nats per token", {"entropy": "entropy"}),
    Panel("Gradient norm", {"grad_norm": "norm"}),
)
_COLOURS = (_plot.OURS, _plot.MUTED[0])


class RunRecorder(TrainerCallback):
    """Write metrics.jsonl while training, and run.png at its end. An evaluation without training
    writes nothing: the folder may be another run's."""

    def __init__(self) -> None:
        self._has_begun = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begin the file with the state's history, which ends at the checkpoint resumed from."""
        self._has_begun = True
        if state.is_world_process_zero:
            lines = "".join(f"{json.dumps(entry)}\n" for entry in state.log_history)
            write_atomic(Path(str(args.output_dir)) / METRICS_FILE, lines.encode())

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero and self._has_begun:
            with open(Path(str(args.output_dir)) / METRICS_FILE, "a", encoding="utf-8") as file:
                file.write(f"{json.dumps(state.log_history[-1])}\n")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            plot_run(state.log_history, Path(str(args.output_dir)) / PLOT_FILE)


def plot_run(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a run into a PNG: training as thin lines, evaluation as thick ones with dots."""
    panels = [panel for panel in PANELS if _present(history, [*panel.curves])]
    columns = 2 if len(panels) > 1 else 1
    rows = max(1, -(-len(panels) // columns))
    figure = _plot.new_figure(5 * columns, 2.9 * rows + 0.3, "train")
    for number, panel in enumerate(panels, 1):
        _draw(figure.add_subplot(rows, columns, number), panel, history)
    if any(name.startswith("eval_") for entry in history for name in entry):
        text = "thin: training batches; thick, with dots: evaluation"
        figure.supxlabel(text, fontsize=_plot.SIZE, color=_plot.INK)
    _plot.save(figure, path)


def _draw(axes: Axes, panel: Panel, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw the curves of a panel; several are labelled at their ends."""
    ends = []
    for (name, label), colour in zip(panel.curves.items(), _COLOURS, strict=False):
        steps, values = _series(history, name)
        evaluated = _series(history, f"eval_{name}")
        axes.plot(steps, values, color=colour, linewidth=1, alpha=0.45 if evaluated[0] else 1)
        axes.plot(*evaluated, "o-", color=colour, markersize=5, linewidth=2.4)
        last_steps, last_values = evaluated if evaluated[0] else (steps, values)
        if last_steps:
            ends.append(_plot.Label(last_steps[-1], last_values[-1], label, colour, bold=True))
    _plot.describe(axes, panel.title, "step")
    if len(panel.curves) > 1:
        _plot.label_ends(axes, ends)


def _present(history: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    return any(name in entry or f"eval_{name}" in entry for entry in history for name in names)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [entry for entry in history if name in entry]
    return [entry["step"] for entry in found], [entry[name] for entry in found]
