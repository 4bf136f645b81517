"""Time, memory and error, in separate passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import quantiles

from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .cases import Case, Truth
from .providers import Provider


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, one after the other in every round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    cuts = quantiles(seconds, n=10, method="inclusive")
    return {"q10_s": cuts[0], "median_s": cuts[4], "q90_s": cuts[8]}


def peak_extra_bytes(call: Callable[[], tuple[Tensor, ...]]) -> int:
    """Most bytes of tensors alive at once inside the call, less its last result, dweight: the
    other gradient is not there yet when most is."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()[-1].untyped_storage().nbytes()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak - result


def errors(provider: Provider, case: Case) -> dict[str, float]:
    """Largest absolute error of the log-probs; relative (Frobenius) errors of the gradients."""
    logps, dhidden, dweight = provider.both(case)
    truth: Truth = case.truth
    return {
        "logp_error": float((logps.double() - truth.logps).abs().max()),
        "largest_logp": float(logps.max()),
        "dhidden_error": _relative(dhidden, truth.dhidden),
        "dweight_error": _relative(dweight, truth.dweight),
    }


def _relative(got: Tensor, truth: Tensor) -> float:
    return float((got.float() - truth).norm() / truth.norm())


def is_right(got: dict[str, float], plain: dict[str, float]) -> bool:
    """No worse than plain torch in the same dtype, with a tenth to spare; no positive log-prob."""
    keys = ("logp_error", "dhidden_error", "dweight_error")
    return got["largest_logp"] <= 0 and all(got[key] <= 1.1 * plain[key] for key in keys)
