"""Run cases through providers: each alone in a process for errors and memory, then all that are
right in turns in one process for time.

Legend: N scored rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from . import isolated, measure, problems
from .cases import Case
from .isolated import FAILED, OK, WRONG, Trial
from .problems import Problem
from .providers import BASELINE, REFERENCE, Provider
from .record import Result

FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    rounds: of timing, fewer where they would take more than `budget_s`, 3 at least.
    limit_s: a provider whose call takes longer is not timed. shared: folder of the real text.
    until: no case and direction begins after this `time.monotonic()`.
    """

    device: torch.device
    shared: Path
    rounds: int = 7
    budget_s: float = 60.0
    limit_s: float = 20.0
    until: float = math.inf


Note = Callable[[str, str], None]  # takes a case's label and the current step


def silent(label: str, doing: str) -> None:
    """Ignore the note; the default `Note`."""


def measured(
    cases: Iterable[Case],
    providers: Sequence[Provider],
    settings: Settings,
    note: Note = silent,
) -> Iterator[list[Result]]:
    """Yield the results of one case and direction after the other."""
    for case in cases:
        if time.monotonic() > settings.until:
            return
        with tempfile.TemporaryDirectory(prefix="rao-bench-") as folder:
            path, device = Path(folder) / "problem.pt", settings.device.type
            note(case.label(device, case.directions[0]), "the float64 result")
            problems.make(case, device, settings.shared).save(path)
            for direction in case.directions:
                if time.monotonic() > settings.until:
                    return
                says = partial(note, case.label(device, direction))
                yield _of_direction(case, direction, path, providers, settings, says)


def _of_direction(
    case: Case,
    direction: str,
    path: Path,
    providers: Sequence[Provider],
    settings: Settings,
    says: Callable[[str], None],
) -> list[Result]:
    problem, tried = Problem.load(path, settings.device), {}
    for number, one in enumerate(providers, 1):
        says(f"errors and memory of {one.name} ({number} of {len(providers)})")
        tried[one.name] = _tried(one, direction, path, settings)
    _judge(tried, providers, problem.truth.tolerance)
    good = [one for one in providers if tried[one.name]["status"] == OK]
    calls = {one.name: one.prepare(problem, direction) for one in good}
    rounds = _rounds(sum(tried[one.name]["call_s"] for one in good), settings)
    says(f"time of {len(good)} providers in turns, {rounds} rounds")
    times = {
        name: measure.spread(seconds) | {"rounds": rounds}
        for name, seconds in measure.interleaved(calls, rounds).items()
    }
    baseline = times[BASELINE]["median_s"]
    about = _about(case, direction, settings.device.type)
    results = []
    for provider in providers:
        result = about | {"provider": provider.name} | tried[provider.name]
        if provider.name in times:
            result |= times[provider.name]
            result["ratio_to_gemms"] = result["median_s"] / baseline
        results.append(result)
    return results


def _tried(provider: Provider, direction: str, path: Path, settings: Settings) -> Result:
    threads, device = torch.get_num_threads(), str(settings.device)
    memory = _memory_to_spare() if settings.device.type == "cpu" else None
    return isolated.run(
        Trial(path, device, provider.name, direction, threads, settings.limit_s, memory)
    )


def _memory_to_spare() -> int | None:
    """Return nine tenths of the free memory in bytes: providers should fail before the machine."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return free * 1024 * 9 // 10


def _judge(tried: dict[str, Result], providers: Sequence[Provider], tolerance: float) -> None:
    """Turn "ok" into "wrong" where errors are too large, and everything into "failed" where plain
    torch, which they are compared with, did not run."""
    plain = tried[REFERENCE]
    for provider in providers:
        result = tried[provider.name]
        if provider.is_baseline or result["status"] != OK:
            continue
        if plain["status"] not in (OK, WRONG):
            result |= {
                "status": FAILED,
                "reason": f"plain torch did not run: {plain.get('reason')}",
            }
            continue
        factor = measure.OUR_FACTOR if provider.is_ours else measure.PEER_FACTOR
        if not measure.is_right(result, plain, factor, tolerance):
            result |= {"status": WRONG, "reason": f"errors above {factor} times plain torch's"}


def _rounds(seconds: float, settings: Settings) -> int:
    affordable = int(settings.budget_s / max(seconds, 1e-9))
    return max(min(settings.rounds, affordable), min(FEWEST_ROUNDS, settings.rounds))


def _about(case: Case, direction: str, device: str) -> Result:
    return {
        "suite": case.suite,
        "case": case.name(device),
        "task": case.task,
        "dtype": str(problems.DTYPES[case.dtype]).removeprefix("torch."),
        "N": case.rows[device],
        "D": case.head.size,
        "V": case.head.vocabulary,
        "direction": direction,
    }
