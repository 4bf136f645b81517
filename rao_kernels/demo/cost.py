"""Time and memory of the loss at the demo's shapes, with the op and with plain torch logits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from .. import _memory
from ..data import Collator, PreferenceDataset, TokenizedRow
from ..fused import rao_loss, sequence_and_prompt_logps
from ..losses import LOSSES
from ..sequence import SequenceBatch

ROUNDS = 7


@dataclass(frozen=True)
class Cost:
    """Forward and backward of a loss: median seconds, peak bytes beyond the inputs, its value."""

    seconds: float
    peak_bytes: int
    loss: float


@dataclass(frozen=True)
class Problem:
    """One training micro-batch at the head: hidden ``[B, T, D]`` and weight ``[V, D]`` in bf16."""

    hidden: Tensor
    weight: Tensor
    batch: SequenceBatch
    input_ids: Tensor
    rewards: Tensor

    @property
    def shape(self) -> str:
        sequences, tokens, width = self.hidden.shape
        return f"{sequences} x {tokens} tokens, D={width} V={len(self.weight)}"


@torch.no_grad()
def make_problem(folder: Path, rows: Sequence[TokenizedRow], prefix_length: int) -> Problem:
    """Compute the hidden states of the model in `folder` on `rows`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    dataset = PreferenceDataset(rows)
    batch = Collator(0, prefix_length)([dataset[i] for i in range(len(rows))])
    hidden = model.model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    weight = model.lm_head.weight.detach().clone()
    return Problem(hidden.clone(), weight, batch["sequences"], batch["input_ids"], batch["rewards"])


def measure(problem: Problem) -> dict[str, Cost]:
    """Measure both implementations of the log-probs in turns, with the same loss on top."""
    # At the start of training the reference is the model itself.
    with torch.no_grad():
        logps, prompt_logps = sequence_and_prompt_logps(
            problem.hidden, problem.weight, problem.batch
        )

    def ours(hidden: Tensor, weight: Tensor) -> Tensor:
        return rao_loss(
            hidden,
            weight,
            problem.batch,
            rewards=problem.rewards,
            ref_logps=logps,
            ref_prompt_logps=prompt_logps,
            log_z0=0.0,
        ).loss

    def dense(hidden: Tensor, weight: Tensor) -> Tensor:
        given = problem.batch.loss_inputs(
            _dense_logps(problem, hidden, weight),
            rewards=problem.rewards,
            ref_logps=logps,
            ref_prompt_logps=prompt_logps,
        )
        return LOSSES["rao"](given, beta=0.1, log_z0=0.0).loss

    calls = {"rao_kernels": ours, "plain torch": dense}
    losses = {name: _step(problem, call) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            _step(problem, call)
            seconds[name].append(time.perf_counter() - began)
    return {
        name: Cost(median(seconds[name]), _peak_bytes(problem, call), losses[name])
        for name, call in calls.items()
    }


def _dense_logps(problem: Problem, hidden: Tensor, weight: Tensor) -> Tensor:
    """Return log-probs ``[B, T]`` from the logits of every position, upcast as models do."""
    following = problem.input_ids.roll(-1, dims=1)
    logps = (hidden @ weight.T).float().log_softmax(-1)
    return logps.gather(-1, following[..., None])[..., 0]


def _step(problem: Problem, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    hidden = problem.hidden.requires_grad_()
    weight = problem.weight.requires_grad_()
    result = loss(hidden, weight)
    torch.autograd.grad(result, [hidden, weight])
    return float(result.detach())


def _peak_bytes(problem: Problem, loss: Callable[[Tensor, Tensor], Tensor]) -> int:
    """Return the most bytes of tensors alive at once, both gradients included."""
    activities = [ProfilerActivity.CPU]
    with _memory.unpooled(), profile(activities=activities, profile_memory=True) as recorded:
        _step(problem, loss)
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak
