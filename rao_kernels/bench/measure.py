"""Time, memory and error, in separate passes."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import quantiles

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .. import _memory, release_memory
from .cases import OP
from .problems import Problem
from .providers import Call, Outcome

Errors = dict[str, float]
GRADIENTS = ("dhidden_error", "dweight_error")
# Errors allowed, in multiples of plain torch's: ours, and those of other libraries.
OUR_FACTOR, PEER_FACTOR = 1.1, 2.0
FEWEST_ROUNDS = 3
TIMES = ("q10_s", "median_s", "q90_s", "rounds")


def seconds_of(call: Callable[[], object]) -> float:
    """Return the seconds of a call, until the device has finished it."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def event_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call between two events on the GPU, by the clock elsewhere.

    The device is idle before: a call of few small kernels takes as long as launching them does.
    """
    if device.type != "cuda":
        return seconds_of(call)
    torch.cuda.synchronize(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def rounds_within(budget_s: float, seconds: float, rounds: int) -> int:
    """Return how many rounds of `seconds` fit the budget: at most `rounds`, 3 of them at least."""
    affordable = int(budget_s / max(seconds, 1e-9))
    return max(min(rounds, affordable), min(FEWEST_ROUNDS, rounds))


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call, one after the other in every round, after a warm-up
    round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            taken = seconds_of(call)
            if number:
                seconds[name].append(taken)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 10% and 90% quantiles."""
    if len(seconds) == 1:
        return dict.fromkeys(TIMES[:3], seconds[0])
    cuts = quantiles(seconds, n=10, method="inclusive")
    return {"q10_s": cuts[0], "median_s": cuts[4], "q90_s": cuts[8]}


def peak_extra_bytes(call: Call, device: torch.device) -> int:
    """Return the most bytes of tensors alive at once inside the call, less dweight if there is one;
    dhidden is not subtracted, for it is not allocated yet at the peak."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = _result_bytes(call())
        return torch.cuda.max_memory_allocated(device) - before - result
    activities = [ProfilerActivity.CPU]
    with _memory.unpooled(), profile(activities=activities, profile_memory=True) as recorded:
        result = _result_bytes(call())
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak - result


def _result_bytes(outcome: Outcome) -> int:
    return 0 if outcome.dweight is None else outcome.dweight.untyped_storage().nbytes()


def peak_rss_growth(call: Callable[[], object]) -> int | None:
    """Return the bytes by which the process grew at most, its results and the memory of allocators
    and libraries included; None where the system does not tell."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        release_memory()
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return _status("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def errors(outcome: Outcome, problem: Problem) -> Errors:
    """Return the largest absolute error of the log-probs, or the loss's, and relative (Frobenius)
    errors of the gradients there are."""
    truth = problem.truth
    off = (outcome.value.double() - truth.value.to(outcome.value.device)).abs().max()
    found = {"logp_error" if problem.task == OP else "loss_error": float(off)}
    if outcome.value.dtype in (torch.bfloat16, torch.float16):
        eps = torch.finfo(outcome.value.dtype).eps
        found["value_rounding"] = eps * float(truth.value.abs().max())
    if problem.task == OP:
        found["largest_logp"] = float(outcome.value.max())
    if outcome.dhidden is not None:
        found["dhidden_error"] = _relative(outcome.dhidden, truth.dhidden)
    if outcome.dweight is not None:
        found["dweight_error"] = _relative(outcome.dweight, truth.dweight)
    return found


def _relative(got: Tensor, truth: Tensor) -> float:
    """Relative Frobenius error, block by block: a head's gradient may be gigabytes."""
    off = size = 0.0
    for one, other in zip(got.split(8192), truth.split(8192), strict=True):
        off += float((one.float() - other.to(one.device)).norm()) ** 2
        size += float(other.norm()) ** 2
    return math.sqrt(off / size)


def is_right(got: Errors, plain: Errors, factor: float, tolerance: float = 0.0) -> bool:
    """Return whether errors are at most `factor` times those of plain torch in the same dtype, and
    no log-prob is positive.

    Values that are returned in half precision may be rounded to it. tolerance: see
    `problems.Truth`.
    """
    limits = {key: factor * plain[key] for key in ("logp_error", *GRADIENTS) if key in got}
    if "loss_error" in got:
        limits["loss_error"] = factor * max(plain["loss_error"], tolerance)
    for key in ("logp_error", "loss_error"):
        if key in limits:
            limits[key] += got.get("value_rounding", 0.0)
    if got.get("largest_logp", 0.0) > 0:
        return False
    return all(got[key] <= limit for key, limit in limits.items())
