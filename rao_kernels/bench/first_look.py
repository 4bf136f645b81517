"""``python -m rao_kernels.bench.first_look``: what to know of a new GPU, in one short process.

In this order: errors of every backend against float64; the bare GEMMs, with bf16 and fp32 results,
tile by tile and over the whole vocabulary; the op at a large head, by backend and by how much it
retains, and its sparse backward on flat and on peaked logits (`peaked`); few rows, beside plain
torch; a profile of one step. Each result is printed and written as it comes. Times are those
between CUDA events. Exit status 1: a result was wrong, or a call failed.

``--device cpu --small`` goes the same way over tiny shapes. Legend: N rows, V vocabulary, D hidden
size, W entries of a tile.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .. import backends, engine
from ..types import EngineOptions
from . import measure, peaked, problems
from .cases import BOTH, FORWARD, OP, PRODUCTS, Head
from .look import DTYPE, FULL, SMALL, Look, about
from .problems import Problem, Truth
from .providers import BASELINE, REFERENCE, Provider, registry
from .providers.ours import ALL_OF_IT, provider
from .record import Result

WARM_UP = 2
SPARSE: EngineOptions = {"grad_tolerance": peaked.TOLERANCE}
PLANS: dict[str, EngineOptions] = {
    "default": {},
    "retained": {"workspace_bytes": ALL_OF_IT},
    "512 MiB": {"workspace_bytes": 512 << 20},
    "recomputed": {"workspace_bytes": 0},
    "sparse": SPARSE,
}


def flat(look: Look, rows: int, head: Head) -> Problem:
    """Return a problem of random operands, without an answer."""
    generator = torch.Generator(look.device).manual_seed(0)
    made: dict[str, Any] = {"generator": generator, "device": look.device}
    hidden = torch.randn(rows, head.size, dtype=DTYPE, **made)
    weight = torch.randn(head.vocabulary, head.size, dtype=DTYPE, **made).div_(head.size**0.5)
    targets = torch.randint(head.vocabulary, (rows,), **made)
    return unanswered(hidden, weight, targets, torch.randn(rows, **made) / rows)


def unanswered(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Problem:
    return Problem(OP, None, hidden, weight, Truth(upstream, upstream, upstream), targets, upstream)


def first_rows(problem: Problem, rows: int) -> Problem:
    """Return the problem of its first rows."""
    assert problem.upstream is not None
    cut = (problem.hidden[:rows].clone(), problem.weight, problem.targets[:rows])
    return unanswered(*cut, problem.upstream[:rows].clone())


def check_errors(look: Look) -> None:
    """Find the errors of every backend, with logits retained and recomputed, against float64."""
    for head in look.size.checked:
        operands = flat(look, look.size.checked_rows, head)
        hidden, weight, targets = operands.hidden, operands.weight, operands.targets
        problem = problems.op_problem(hidden, weight, targets, head.softcap)
        assert problem.upstream is not None
        problem = replace(problem, upstream=problem.upstream.to(look.device))
        case = "errors," if head.softcap is None else f"errors, softcap {head.softcap:g},"
        plain = measure.errors(registry(look.device)[REFERENCE].prepare(problem, BOTH)(), problem)
        look.emit(about(case, problem, BOTH, REFERENCE) | {"status": "ok"} | plain)
        for name in look.backends:
            for plan in ("retained", "recomputed"):
                one = provider(f"{name} {plan}", PLANS[plan] | {"backend": name})
                what = about(case, problem, BOTH, one.name)
                look.attempt(what, judged, one, problem, plain)


def judged(one: Provider, problem: Problem, plain: measure.Errors) -> Result:
    """Return the errors of a provider, and "wrong" where they are too large."""
    found: Result = dict(measure.errors(one.prepare(problem, BOTH)(), problem))
    if measure.is_right(found, plain, measure.OUR_FACTOR):
        return found
    return found | {"status": "wrong", "reason": f"errors above {measure.OUR_FACTOR} of torch's"}


def timed(look: Look, call: Callable[[], object], flops: float) -> Result:
    """Return the times of a call, each between two events, after a warm-up."""
    for _ in range(WARM_UP):
        call()
    seconds = [measure.event_seconds(call, look.device) for _ in range(look.rounds)]
    found: Result = dict(measure.spread(seconds))
    return found | {"rounds": look.rounds, "tflops": flops / found["median_s"] / 1e12}


def time_gemms(look: Look, problem: Problem) -> None:
    """Time the three GEMMs, with bf16 and with fp32 results, tile by tile and at once."""
    hidden, weight = problem.hidden, problem.weight
    width = engine.make_plan(
        len(hidden),
        weight.shape[0],
        weight.shape[1],
        DTYPE,
        backend=look.backends[-1],
        device_type=look.device.type,
        workspace_bytes=0,
    ).width
    dz = hidden.new_empty(len(hidden), len(weight)).normal_(0.0, 1e-3)
    flops = 2.0 * hidden.numel() * len(weight)
    for entries in (width, len(weight)):
        for dtype in (DTYPE, torch.float32):
            made = Gemms(hidden, weight, dz, entries, dtype)
            calls = {"logits": made.score, "sums of dhidden": made.sum_dhidden}
            if dtype == DTYPE:
                calls["dweight"] = made.put_dweight
            short = str(dtype).removeprefix("torch.")
            for name, call in calls.items():
                what = about("GEMM", problem, FORWARD, f"{name}, {short} result, W={entries}")
                look.attempt(what, timed, look, call, flops)


class Gemms:
    """The GEMMs over all tiles of `width`, as the backends call them.

    result: dtype of the logits and of the sums of dhidden; dweight is in the weight's.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, dz: Tensor, width: int, result: torch.dtype
    ) -> None:
        self.tiles = [slice(start, start + width) for start in range(0, len(weight), width)]
        self.options: dict[str, Any] = {} if result == hidden.dtype else {"out_dtype": result}
        if self.options and not hidden.is_cuda:  # only CUDA's GEMM sums bf16 operands into fp32
            hidden, weight, dz, self.options = hidden.float(), weight.float(), dz.float(), {}
        self.hidden, self.weight, self.dz = hidden, weight, dz
        self.logits = hidden.new_empty(len(hidden), min(width, len(weight)), dtype=result)
        self.dhidden = torch.zeros_like(hidden, dtype=result)
        self.dweight = torch.empty_like(weight)

    def score(self) -> None:
        for tile in self.tiles:
            rows = self.weight[tile]
            torch.mm(self.hidden, rows.T, out=self.logits[:, : len(rows)], **self.options)

    def sum_dhidden(self) -> None:
        for tile in self.tiles:
            dz, weight = self.dz[:, tile], self.weight[tile]
            torch.addmm(self.dhidden, dz, weight, out=self.dhidden, **self.options)

    def put_dweight(self) -> None:
        for tile in self.tiles:
            torch.mm(self.dz[:, tile].T, self.hidden, out=self.dweight[tile])


def compare(
    look: Look, case: str, problem: Problem, direction: str, others: Sequence[Provider]
) -> None:
    """Time the bare GEMMs, plain torch and other providers on a problem."""
    known = registry(look.device)
    for one in (known[BASELINE], known[REFERENCE], *others):
        what = about(case, problem, direction, one.name)
        look.attempt(what, compared, look, one, problem, what)


def compared(look: Look, one: Provider, problem: Problem, what: Result) -> Result:
    """Return times and memory of a provider, in multiples of the bare GEMMs on the same problem."""
    direction, place = what["direction"], (what["case"], what["direction"])
    call = one.prepare(problem, direction)
    flops = 2.0 * PRODUCTS[direction] * problem.hidden.numel() * len(problem.weight)
    found = timed(look, call, flops)
    if one.name == BASELINE:
        look.gemms[place] = found["median_s"]
    else:
        found["peak_extra_bytes"] = measure.peak_extra_bytes(call, look.device)
    if place in look.gemms:
        found["ratio_to_gemms"] = found["median_s"] / look.gemms[place]
    return found


def ours(look: Look, *plans: str) -> list[Provider]:
    """Return every backend with kernels of its own under each of the plans."""
    return [
        provider(f"{name} {plan}", PLANS[plan] | {"backend": name})
        for name in look.backends
        if name != "eager"
        for plan in plans
    ]


def look_at_peaked(look: Look) -> None:
    """Time the dense and the sparse backward on calibrated peaked logits."""
    rows, head = look.size.rows, look.size.head
    unscaled, weight = peaked.operands(rows, head, DTYPE, look.device)
    scale = peaked.calibrated(unscaled, weight)
    hidden, targets = peaked.scaled(unscaled, weight, scale)
    share = peaked.kept_share(hidden, weight, targets)
    generator = torch.Generator(look.device).manual_seed(2)
    upstream = torch.randn(rows, generator=generator, device=look.device) / rows
    problem = unanswered(hidden, weight, targets, upstream)
    what = about("peaked,", problem, BOTH, "calibration")
    look.emit(what | {"status": "ok", "kept_share": share, "logit_scale": scale})
    compare(look, "peaked,", problem, BOTH, ours(look, "default", "sparse"))


def look_at_head(look: Look, problem: Problem) -> None:
    """Time every plan of every backend on flat logits."""
    compare(look, "flat,", problem, BOTH, ours(look, *PLANS))
    compare(look, "flat,", problem, FORWARD, ours(look, "default"))


def look_at_few_rows(look: Look, problem: Problem) -> None:
    for rows in look.size.few:
        few = first_rows(problem, rows)
        for direction in (BOTH, FORWARD):
            compare(look, "flat,", few, direction, ours(look, "default"))


def write_profile(look: Look, problem: Problem) -> None:
    """Write and print the profiler's table of one step of each backend."""
    on_gpu = look.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    texts = []
    for one in ours(look, "default"):
        call = one.prepare(problem, BOTH)
        call()
        with profile(activities=activities) as recorded:
            call()
            if on_gpu:
                torch.cuda.synchronize()
        table = recorded.key_averages().table(sort_by=order, row_limit=25)
        texts.append(f"{one.name}, N={len(problem.hidden)}, forward and backward\n{table}")
    text = "\n".join(texts)
    (look.out / "first_profile.txt").write_text(text)
    print(text, flush=True)


def run(look: Look) -> None:
    """Go through all parts in order; one that fails does not end the others."""
    for name, reason in backends.reasons(look.device, DTYPE).items():
        if reason is not None:
            print(f"not {name}: {reason}", flush=True)
    problem = flat(look, look.size.rows, look.size.head)
    parts: tuple[Callable[[], None], ...] = (
        lambda: check_errors(look),
        lambda: time_gemms(look, problem),
        lambda: look_at_head(look, problem),
        lambda: look_at_peaked(look),
        lambda: look_at_few_rows(look, problem),
        lambda: write_profile(look, problem),
    )
    for part in parts:
        if time.monotonic() > look.until:
            print("left out, no time: all that follows", file=sys.stderr)
            return
        try:
            part()
        except Exception:
            traceback.print_exc()
            look.failed = True


def main(argv: Sequence[str]) -> int:
    """Run the program; return its exit status."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would write to the screen
    parser = argparse.ArgumentParser(
        prog="python -m rao_kernels.bench.first_look",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="cuda (the default) or cpu")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the program")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of rows and profile")
    parser.add_argument("--rounds", type=int, default=10, help="timed calls of each; default 10")
    help_ = "begin no call after this many; default 200"
    parser.add_argument("--seconds", type=float, default=200.0, help=help_)
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    look = Look(
        device=torch.device(options.device),
        size=SMALL if options.small else FULL,
        out=options.out,
        rounds=options.rounds,
        until=time.monotonic() + options.seconds,
    )
    run(look)
    return int(look.failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
