"""The model card, README.md beside a saved model: method, data, command, metrics, versions."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model import name_of

if TYPE_CHECKING:
    from .base import RunTrainer

_TEXT = """\
---
library_name: {library}
{base}tags:
- rao-kernels
---

# {title}

{model} trained with {method} of rao-kernels.

{facts}
"""

# What transformers logs beside metrics.
_NOT_METRICS = ("step", "epoch", "learning_rate", "grad_norm", "total_flos", "train_loss")
_NOT_METRICS_END = ("_runtime", "_per_second", "_preparation_time")


def write_model_card(trainer: RunTrainer, folder: Path) -> None:
    """Write the card of a model or an adapter; peft adds its own lines to that of an adapter."""
    name = name_of(trainer.model)
    local = Path(name).exists() or not name
    text = _TEXT.format(
        library="peft" if hasattr(trainer.model, "peft_config") else "transformers",
        base="" if local else f"base_model: {json.dumps(name)}\n",
        title=folder.resolve().name,
        model=f"`{Path(name).name}`" if name else type(trainer.model).__name__,
        method=trainer.method(),
        facts=_table(("", ""), _facts(trainer)),
    )
    if trainer.command:
        text += f"\n## Command\n\n```\n{shlex.join(_without_secrets(trainer.command))}\n```\n"
    if metrics := _metrics(trainer.state.log_history):
        rows = [(f"`{key}`", f"{old:.4g}", f"{new:.4g}") for key, (old, new) in metrics.items()]
        text += "\n## Metrics\n\n" + _table(("", "first", "last"), rows) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _facts(trainer: RunTrainer) -> Iterator[tuple[str, str]]:
    args = trainer.args
    yield from trainer.facts()
    yield from trainer.data_facts()
    yield "steps", f"{trainer.state.global_step}"
    micro_batches = args.gradient_accumulation_steps * args.world_size
    yield f"{trainer.units} per step", f"{args.train_batch_size * micro_batches}"
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    yield "learning rate", f"{args.learning_rate:g}, {schedule}"
    yield "optimizer", str(getattr(args.optim, "value", args.optim))
    yield "precision", "bf16" if args.bf16 else "fp16" if args.fp16 else "that of the weights"
    names = ["rao-kernels", "transformers", "torch"]
    names += ["peft"] if hasattr(trainer.model, "peft_config") else []
    yield "versions", ", ".join(f"{name} {version(name)}" for name in names)


def _without_secrets(command: Sequence[str]) -> Iterator[str]:
    """Yield the words of a command, with "..." for the value of an option that is a token."""
    is_secret = False
    for word in command:
        name, equals, _ = word.partition("=")
        if is_secret:
            yield "..."
        elif equals and _is_token(name):
            yield f"{name}=..."
        else:
            yield word
        is_secret = not equals and _is_token(word)


def _is_token(option: str) -> bool:
    return option.startswith("--") and option.replace("-", "_").endswith(("_token", "_api_key"))


def _metrics(history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return the first and the last value of each metric, of evaluations if there were any."""
    found: dict[str, list[float]] = {}
    for entry in history:
        for key, value in entry.items():
            if key not in _NOT_METRICS and not key.endswith(_NOT_METRICS_END):
                found.setdefault(key, []).append(value)
    evaluated = {key: values for key, values in found.items() if key.startswith("eval_")}
    return {key: (values[0], values[-1]) for key, values in (evaluated or found).items()}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
