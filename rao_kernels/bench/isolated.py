"""Run one provider on one case in a process of its own, for its errors and its memory; on a GPU
also for its time.

A process that hangs or runs out of memory gives a result too.
"""

from __future__ import annotations

import multiprocessing
import resource
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import torch

from . import measure, providers
from .problems import Problem
from .providers import Call, Outcome

OK, WRONG, UNSUPPORTED, FAILED = "ok", "wrong", "unsupported", "failed"
OUT_OF_MEMORY, TOO_SLOW = "out of memory", "too slow"
Result = dict[str, Any]
FIRST_CALL_S = 180.0  # of the first call, the start of the process and compiling included
CALLS = 8  # times the limit of a call: what those after the first may take, but for timed rounds


@dataclass(frozen=True)
class Trial:
    """The task of the process.

    limit_s: seconds of one call, but for the first. memory: bytes it may allocate. rounds: timed
    calls, fewer where they would take more than `budget_s`.
    """

    problem: Path
    device: str
    provider: str
    direction: str
    threads: int
    limit_s: float
    memory: int | None = None
    rounds: int = 0
    budget_s: float = 0.0


def run(trial: Trial) -> Result:
    """Return `status` and, depending on it, `reason`, seconds, errors and peaks.

    The process reports twice: after its first call, and at the end.
    """
    context = _context(trial.device)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(trial, sender))
    process.start()
    sender.close()
    later = CALLS * trial.limit_s + trial.budget_s
    result: Result = {}
    for what, allowed in (("its first call", FIRST_CALL_S), ("its later calls", later)):
        if not receiver.poll(allowed):
            process.kill()
            result |= {"status": TOO_SLOW, "reason": f"{what}: ended after {allowed:.0f} s"}
            break
        try:
            result |= receiver.recv()
        except EOFError:
            process.join()
            result |= _death(process.exitcode)
        if "status" in result:
            break
    process.join()
    return result


def _context(device: str) -> SpawnContext | ForkServerContext:
    """Return how to start processes: on a CPU forked from a server that has imported the slow
    packages, else spawned, because a fork cannot use CUDA."""
    if device != "cpu":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "trl.trainer.utils", "liger_kernel.chunked_loss"])
    return context


def _death(code: int | None) -> Result:
    """Return the result of a process that sent none; Linux kills one that takes too much memory
    with signal 9."""
    if code == -9:
        return {"status": OUT_OF_MEMORY, "reason": "ended by the kernel"}
    return {"status": FAILED, "reason": f"the process ended with code {code}"}


def _report(trial: Trial, sender: Connection) -> None:
    try:
        if trial.memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (trial.memory, trial.memory))
        result = measured(trial, sender.send)
    except providers.Unsupported as reason:
        result = {"status": UNSUPPORTED, "reason": str(reason)}
    except (MemoryError, torch.OutOfMemoryError) as error:
        result = {"status": OUT_OF_MEMORY, "reason": _line(error)}
    except Exception as error:
        lacks = "can't allocate memory" in str(error)
        result = {"status": OUT_OF_MEMORY if lacks else FAILED, "reason": _line(error)}
        if not lacks:
            traceback.print_exc()
    sender.send(result)


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"


def measured(trial: Trial, warm: Callable[[Result], None]) -> Result:
    """Return the errors of the first call, the seconds of the second, the peaks of two more, and
    the times of the trial's rounds.

    The first call may compile kernels and tune them; `warm` is given its seconds when it is over.
    """
    torch.set_num_threads(trial.threads)
    device = torch.device(trial.device)
    problem = Problem.load(trial.problem, device)
    provider = providers.registry(device)[trial.provider]
    call = provider.prepare(problem, trial.direction)
    kept: list[Outcome] = []
    found: Result = {"first_call_s": measure.seconds_of(lambda: kept.append(call()))}
    outcome = kept.pop()
    if not provider.is_baseline:
        found |= measure.errors(outcome, problem)
    del outcome
    warm(dict(found))
    found |= {"status": OK, "call_s": measure.seconds_of(call)}
    if found["call_s"] > trial.limit_s:
        reason = f"a call takes more than {trial.limit_s:.0f} s"
        return found | {"status": TOO_SLOW, "reason": reason}
    if not provider.is_baseline:
        found["peak_extra_bytes"] = measure.peak_extra_bytes(call, device)
        if device.type == "cpu":
            found["peak_rss_growth_bytes"] = measure.peak_rss_growth(call)
    return found | (_times(call, found["call_s"], trial) if trial.rounds else {})


def _times(call: Call, seconds: float, trial: Trial) -> Result:
    """Return the times of the trial's rounds; a call takes about `seconds`."""
    rounds = measure.rounds_within(trial.budget_s, seconds, trial.rounds)
    taken = measure.interleaved({trial.provider: call}, rounds)[trial.provider]
    return measure.spread(taken) | {"rounds": rounds}
