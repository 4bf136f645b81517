"""Run one provider on one case in a process of its own, for its errors and its memory.

A process that hangs or runs out of memory gives a result too.
"""

from __future__ import annotations

import multiprocessing
import resource
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import torch

from . import measure, providers
from .problems import Problem

OK, WRONG, UNSUPPORTED, FAILED = "ok", "wrong", "unsupported", "failed"
OUT_OF_MEMORY, TOO_SLOW = "out of memory", "too slow"
Result = dict[str, Any]
# Multiples of the time limit of a call: for the first, which may compile, and for a whole trial.
COMPILING, CALLS = 3, 8


@dataclass(frozen=True)
class Trial:
    """The task of the process. limit_s: seconds of one call; memory: bytes it may allocate."""

    problem: Path
    device: str
    provider: str
    direction: str
    threads: int
    limit_s: float
    memory: int | None = None


def run(trial: Trial) -> Result:
    """Return `status` and, depending on it, `reason`, `seconds`, errors and peaks."""
    context = _context(trial.device)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(trial, sender))
    process.start()
    sender.close()
    allowed = CALLS * trial.limit_s
    result: Result
    if receiver.poll(allowed):
        try:
            result = receiver.recv()
        except EOFError:
            process.join()
            result = _death(process.exitcode)
    else:
        process.kill()
        result = {"status": TOO_SLOW, "reason": f"ended after {allowed:.0f} s"}
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
        result = measured(trial)
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


def measured(trial: Trial) -> Result:
    """Return the errors of the first call, the seconds of the second, the peaks of two more."""
    torch.set_num_threads(trial.threads)
    device = torch.device(trial.device)
    problem = Problem.load(trial.problem, device)
    provider = providers.registry(device)[trial.provider]
    call = provider.prepare(problem, trial.direction)
    found: Result = {"status": OK}
    kept = []
    found["first_call_s"] = measure.seconds_of(lambda: kept.append(call()))
    outcome = kept.pop()
    if not provider.is_baseline:
        found |= measure.errors(outcome, problem)
    del outcome
    # The first call may include compilation, which takes less than this.
    found["call_s"] = found["first_call_s"]
    if found["call_s"] < COMPILING * trial.limit_s:
        found["call_s"] = measure.seconds_of(call)
    if found["call_s"] > trial.limit_s:
        reason = f"a call takes more than {trial.limit_s:.0f} s"
        return found | {"status": TOO_SLOW, "reason": reason}
    if provider.is_baseline:
        return found
    found["peak_extra_bytes"] = measure.peak_extra_bytes(call, device)
    if device.type == "cpu":
        found["peak_rss_growth_bytes"] = measure.peak_rss_growth(call)
    return found
