"""Callbacks that watch a run for non-finite numbers, a rising loss, and Ctrl-C."""

from __future__ import annotations

import math
import os
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import DivergedError
from . import checkpoints
from .metrics import Reduce
from .prepare import Datasets, each_dataset

# Logged losses that are compared: the first of the run with the last.
_WINDOW = 5


class DivergenceGuard(TrainerCallback):
    """Stops a run at the first step with a loss or weight that is not finite, before it is saved.

    Weights are checked, not gradients: fp16's loss scaling skips steps whose gradients overflow.
    """

    def __init__(self, reduce: Reduce) -> None:
        self._reduce = reduce
        self._losses: list[Tensor] = []

    def add_loss(self, loss: Tensor) -> None:
        """Note the loss of a micro-batch of the running step."""
        self._losses.append(loss.detach().float())

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        model: nn.Module = given["model"]
        losses, self._losses = torch.stack(self._losses), []
        weights = _trained_weights(model)
        # A sum of squares may overflow where no weight does: it only says when to look closer.
        norms = torch._foreach_norm(list(weights.values())) if weights else ()
        sums = torch.stack([losses.sum(), *(norm.to(losses) for norm in norms)])
        if not self._any_rank(args, ~sums.isfinite().all()):
            return
        findings = _findings(losses, weights, model)
        if self._any_rank(args, torch.tensor(bool(findings), device=losses.device)):
            step = state.global_step + 1
            raise diverged(
                args, step, findings or "another process found values that are not finite"
            )

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Stop if the norm of the gradients is not finite.

        Clipping by an infinite norm makes every gradient 0, and nothing is learnt. Under fp16,
        loss scaling skips such a step by itself.
        """
        norm = (given.get("logs") or {}).get("grad_norm", 0.0)
        if not math.isfinite(norm) and not args.fp16:
            raise diverged(args, state.global_step, f"the norm of the gradients is {norm}")

    def _any_rank(self, args: TrainingArguments, flag: Tensor) -> bool:
        """Return whether `flag` is set on any rank: a good step's one host read."""
        joined = self._reduce(flag.float(), "max") if args.world_size > 1 else flag
        return bool(joined.item())


def diverged(args: TrainingArguments, step: int, findings: str) -> DivergedError:
    """Make the error of a run that cannot go on."""
    last = checkpoints.newest_complete(Path(str(args.output_dir)))
    return DivergedError(
        f"training diverged at step {step}: {findings}. Nothing of this step was saved; the last "
        f"complete checkpoint is {last or 'none'}. Lower learning_rate (now "
        f"{args.learning_rate:g}) or set warmup_steps, and look for extreme rewards in the data."
    )


def _trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return this process's part of the trained parameters: of a sharded one its shard."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # DeepSpeed's ZeRO-3 leaves the parameter empty and keeps its part beside it.
            shard = getattr(parameter, "ds_tensor", parameter)
            local = shard.to_local() if hasattr(shard, "to_local") else shard
            if local.numel():
                found[name] = local.detach()
    return found


def _findings(losses: Tensor, weights: Mapping[str, Tensor], model: nn.Module) -> str:
    parts = []
    if not bool(losses.isfinite().all()):
        parts.append(f"the loss is {float(losses[~losses.isfinite()][0])}")
    bad = [name for name, weight in weights.items() if not bool(weight.isfinite().all())]
    if bad:
        gradients = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
        if gradients and not bool((norm := torch.stack(gradients).norm()).isfinite()):
            parts.append(f"the norm of the gradients is {float(norm)}")
        parts.append(
            f"{len(bad)} of {len(weights)} trained weights are not finite, the first {bad[0]}"
        )
    return "; ".join(parts)


class RisingLoss(TrainerCallback):
    """Warns once if the loss rises instead of falling."""

    def __init__(self) -> None:
        self._warned = False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._warned or not state.is_world_process_zero:
            return
        if finding := rise(state.log_history):
            self._warned = True
            warnings.warn(
                f"{finding}: the model moves away from its targets. Lower learning_rate "
                f"(now {args.learning_rate:g}) or set warmup_steps; see docs/training.md",
                stacklevel=2,
            )


def rise(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Describe how the loss has risen; None if it has not.

    A held-out loss has risen if it exceeds 1.5 times the first evaluation's; the training loss, if
    the last logged ones all exceed the first ones, are twice as high on average, and exceed the
    first evaluation's.
    """
    first: dict[str, float] = {}
    for entry in history:
        for name, value in entry.items():
            if name.startswith("eval_") and name.endswith("loss"):
                start = first.setdefault(name, value)
                if value > 1.5 * start > 0.0:
                    return f"{name} has risen from {start:.4g} to {value:.4g}"
    losses = [entry["loss"] for entry in history if "loss" in entry]
    if len(losses) < 2 * _WINDOW:
        return None
    early, late = losses[:_WINDOW], losses[-_WINDOW:]
    before, now = sum(early) / _WINDOW, sum(late) / _WINDOW
    if min(late) > max(early) and now > 2.0 * before > 0.0 and now > first.get("eval_loss", 0.0):
        return f"the training loss has risen from {before:.4g} to {now:.4g}"
    return None


def warn_about_ties(held_out: Datasets) -> None:
    """Warn if no held-out prompt has responses of different rewards."""
    for dataset in each_dataset(held_out):
        ordered = (
            row.preferred is not None or len(set(row.rewards or ())) > 1 for row in dataset.rows
        )
        # Records without rewards are for losses that log neither of the two metrics.
        has_rewards = any(row.rewards is not None for row in dataset.rows)
        if has_rewards and not any(ordered):
            warnings.warn(
                f"none of the {len(dataset)} held-out prompts has two responses of different "
                "rewards: rewards/margins stays 0 and rewards/accuracies 0.5 whatever is learnt. "
                "Hold out more prompts, or prompts whose responses differ in reward",
                stacklevel=2,
            )


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C saves a checkpoint after the running step and ends training; a second one aborts.

    For runs of one process: ranks would see the signal at different steps.
    """

    def __init__(self) -> None:
        self.interrupted = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle Ctrl-C inside the context."""
        process = os.getpid()

        def note(number: int, frame: Any) -> None:
            # Workers of the data loader inherit the handler; their parent ends them.
            if os.getpid() != process:
                return
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            # Not print: the signal may have interrupted one, which holds its lock.
            os.write(2, b"\ninterrupt: saving a checkpoint after this step; again: stop at once\n")

        previous = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save nothing a second time: transformers ends an epoch when it stops training."""
        if self.interrupted:
            control.should_log = control.should_evaluate = control.should_save = False
