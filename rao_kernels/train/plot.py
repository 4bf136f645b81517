"""metrics.jsonl and the picture of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import MissingDependencyError
from ..refcache import write_atomic

METRICS_FILE = "metrics.jsonl"
PLOT_FILE = "run.png"
# Title of a panel -> the curves in it.
_PANELS = {
    "loss": ["loss"],
    "implicit reward": ["rewards/chosen", "rewards/rejected"],
    "margin": ["rewards/margins"],
    "accuracy": ["rewards/accuracies"],
    "log-probability": ["logps/chosen", "logps/rejected"],
    "gradient norm": ["grad_norm"],
}
_COLORS = ("tab:blue", "tab:orange")


class RunRecorder(TrainerCallback):
    """Writes metrics.jsonl from the start of training on, and run.png at its end. An evaluation
    without training writes nothing: the folder may be another run's."""

    def __init__(self) -> None:
        self._has_begun = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The file becomes what the state knows: nothing after the checkpoint resumed from."""
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
    """Draw the curves of a run, training as lines and evaluation as dots, into a PNG."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "train") from error
    panels = {title: names for title, names in _PANELS.items() if _present(history, names)}
    columns = 2 if len(panels) > 1 else 1
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(5 * columns, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, names) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        for name, color in zip(names, _COLORS, strict=False):
            label = name.rpartition("/")[2]
            axes.plot(*_series(history, name), color=color, label=label)
            if _present(history, [f"eval_{name}"]):
                evaluated = _series(history, f"eval_{name}")
                axes.plot(*evaluated, "o--", color=color, label=f"{label} (eval)")
        axes.set(title=title, xlabel="step")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def _present(history: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    return any(name in entry or f"eval_{name}" in entry for entry in history for name in names)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [entry for entry in history if name in entry]
    return [entry["step"] for entry in found], [entry[name] for entry in found]
