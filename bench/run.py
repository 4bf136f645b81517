"""Cases through providers: right first, each alone in a process; then timed, in turns, in one.

Legend: N scored rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import isolated, measure, problems
from .cases import Case
from .isolated import FAILED, OK, WRONG, Trial
from .problems import Problem
from .providers import FLOOR, YARDSTICK, Provider
from .record import Row

FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Settings:
    """rounds: of timing, fewer where they would take more than `budget_s`, 3 at least.
    limit_s: a provider whose call takes longer is not timed. shared: folder of the real probe."""

    device: torch.device
    shared: Path
    rounds: int = 7
    budget_s: float = 60.0
    limit_s: float = 20.0


def measured(
    cases: Iterable[Case], providers: Sequence[Provider], settings: Settings
) -> Iterator[list[Row]]:
    """The rows of one case and direction after the other."""
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="rao-bench-") as folder:
            path = Path(folder) / "problem.pt"
            problems.make(case, settings.device.type, settings.shared).save(path)
            for direction in case.directions:
                yield _of_direction(case, direction, path, providers, settings)


def _of_direction(
    case: Case, direction: str, path: Path, providers: Sequence[Provider], settings: Settings
) -> list[Row]:
    problem = Problem.load(path, settings.device)
    tried = {one.name: _tried(one, direction, path, settings) for one in providers}
    _judge(tried, providers, problem.truth.slack)
    good = [one for one in providers if tried[one.name]["status"] == OK]
    calls = {one.name: one.prepare(problem, direction) for one in good}
    rounds = _rounds(sum(tried[one.name]["call_s"] for one in good), settings)
    times = {
        name: measure.spread(seconds) | {"rounds": rounds}
        for name, seconds in measure.interleaved(calls, rounds).items()
    }
    floor = times[FLOOR]["median_s"]
    about = _about(case, direction, settings.device.type)
    rows = []
    for provider in providers:
        row = about | {"provider": provider.name} | tried[provider.name]
        if provider.name in times:
            row |= times[provider.name]
            row["ratio_to_gemms"] = row["median_s"] / floor
        rows.append(row)
    return rows


def _tried(provider: Provider, direction: str, path: Path, settings: Settings) -> Row:
    threads, device = torch.get_num_threads(), str(settings.device)
    memory = _memory_to_spare() if settings.device.type == "cpu" else None
    return isolated.run(
        Trial(path, device, provider.name, direction, threads, settings.limit_s, memory)
    )


def _memory_to_spare() -> int | None:
    """Nine tenths of what is free: a provider is to fail before the machine does."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return free * 1024 * 9 // 10


def _judge(tried: dict[str, Row], providers: Sequence[Provider], slack: float) -> None:
    """Turn "ok" into "wrong" where the errors say so, and everything into "failed" where plain
    torch itself did not run: there is no yardstick then."""
    plain = tried[YARDSTICK]
    for provider in providers:
        row = tried[provider.name]
        if provider.is_floor or row["status"] != OK:
            continue
        if plain["status"] not in (OK, WRONG):
            row |= {"status": FAILED, "reason": f"nothing to judge by: {plain.get('reason')}"}
            continue
        room = measure.OUR_ROOM if provider.is_ours else measure.PEER_ROOM
        if not measure.is_right(row, plain, room, slack):
            row |= {"status": WRONG, "reason": f"errors above {room} of plain torch's"}


def _rounds(seconds: float, settings: Settings) -> int:
    affordable = int(settings.budget_s / max(seconds, 1e-9))
    return max(min(settings.rounds, affordable), min(FEWEST_ROUNDS, settings.rounds))


def _about(case: Case, direction: str, device: str) -> Row:
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
