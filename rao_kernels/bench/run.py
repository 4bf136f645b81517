"""Run cases through providers: each alone in a process for errors and memory, then all that are
right in turns in one process for time.

On a GPU, whose pace is steady and whose machine may be lent for minutes, each provider is timed in
its own process too, so that its result is there as soon as it is done.

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
Write = Callable[[list[Result]], object]  # keeps results


def silent(label: str, doing: str) -> None:
    """Ignore the note; the default `Note`."""


def measured(
    cases: Iterable[Case],
    providers: Sequence[Provider],
    settings: Settings,
    write: Write,
    note: Note = silent,
) -> Iterator[list[Result]]:
    """Yield the results of one case and direction after the other; `write` has had them already."""
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
                task = Task(case, direction, path, providers, settings, says)
                yield (_one_by_one if device == "cuda" else _in_turns)(task, write)


@dataclass(frozen=True)
class Task:
    """A case and direction to measure. path: of its problem; says: notes what is done."""

    case: Case
    direction: str
    path: Path
    providers: Sequence[Provider]
    settings: Settings
    says: Callable[[str], None]


def _in_turns(task: Task, write: Write) -> list[Result]:
    """Try all providers, then time those that are right in turns."""
    providers, settings, says = task.providers, task.settings, task.says
    problem, tried = Problem.load(task.path, settings.device), {}
    for number, one in enumerate(providers, 1):
        says(f"errors and memory of {one.name} ({number} of {len(providers)})")
        tried[one.name] = _tried(one, task)
    _judge(tried, providers, problem.truth.tolerance)
    good = [one for one in providers if tried[one.name]["status"] == OK]
    calls = {one.name: one.prepare(problem, task.direction) for one in good}
    taken = sum(tried[one.name]["call_s"] for one in good)
    rounds = measure.rounds_within(settings.budget_s, taken, settings.rounds)
    says(f"time of {len(good)} providers in turns, {rounds} rounds")
    for name, seconds in measure.interleaved(calls, rounds).items():
        tried[name] |= measure.spread(seconds) | {"rounds": rounds}
    results = [_result(one, tried, task) for one in providers]
    write(results)
    return results


def _one_by_one(task: Task, write: Write) -> list[Result]:
    """Try and time one provider after the other; the first are those that others are held to."""
    results, tried = [], dict[str, Result]()
    tolerance = Problem.load(task.path, torch.device("cpu")).truth.tolerance
    for number, one in enumerate(task.providers, 1):
        task.says(f"{one.name} ({number} of {len(task.providers)})")
        tried[one.name] = _tried(one, task, task.settings.rounds)
        _judge(tried, [one], tolerance)
        results.append(_result(one, tried, task))
        write(results[-1:])
    return results


def _result(provider: Provider, tried: dict[str, Result], task: Task) -> Result:
    """Return all that is known of a provider; times only of one that is right."""
    about = _about(task.case, task.direction, task.settings.device.type)
    result = about | {"provider": provider.name} | tried[provider.name]
    if result["status"] != OK:
        return {key: value for key, value in result.items() if key not in measure.TIMES}
    if "median_s" in tried[BASELINE]:
        result["ratio_to_gemms"] = result["median_s"] / tried[BASELINE]["median_s"]
    return result


def _tried(provider: Provider, task: Task, rounds: int = 0) -> Result:
    """Run a provider in a process of its own; rounds: timed there."""
    settings = task.settings
    memory = _memory_to_spare() if settings.device.type == "cpu" else None
    trial = Trial(
        problem=task.path,
        device=str(settings.device),
        provider=provider.name,
        direction=task.direction,
        threads=torch.get_num_threads(),
        limit_s=settings.limit_s,
        memory=memory,
        rounds=rounds,
        budget_s=settings.budget_s / len(task.providers),
    )
    return isolated.run(trial)


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
    for provider in providers:
        result = tried[provider.name]
        if provider.is_baseline or result["status"] != OK:
            continue
        plain = tried[REFERENCE]
        if plain["status"] not in (OK, WRONG):
            result |= {
                "status": FAILED,
                "reason": f"plain torch did not run: {plain.get('reason')}",
            }
            continue
        factor = measure.OUR_FACTOR if provider.is_ours else measure.PEER_FACTOR
        if not measure.is_right(result, plain, factor, tolerance):
            result |= {"status": WRONG, "reason": f"errors above {factor} times plain torch's"}


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
