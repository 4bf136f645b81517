"""``bench plan``: compare the default plan with the best that a search finds.

Tile widths first, then the workspace and the threads at the best width; the best found is then
measured again beside the default, because the lowest of many noisy times is too low.

Legend: N rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch

from .. import _memory, backends, engine
from ..backends import Gradients, RowGradients
from ..engine import Plan
from . import measure
from .cases import BOTH, OP, Head
from .problems import DTYPES, Problem, Truth
from .providers.ours import ALL_OF_IT
from .record import Result

WIDTHS = (512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True)
class Shape:
    """The size of a problem; rows: N."""

    rows: int
    head: Head
    dtype: str

    @property
    def name(self) -> str:
        return f"N={self.rows} D={self.head.size} V={self.head.vocabulary}"


@dataclass(frozen=True)
class Choice:
    """The options of a plan; None: the default."""

    width: int | None = None
    workspace_bytes: int | None = None
    threads: int | None = None


# Each takes up to some seconds on two cores; together they span what the plan depends on.
SHAPES = (
    Shape(64, Head("", 512, 32768), "fp32"),
    Shape(64, Head("", 4096, 128256), "bf16"),
    Shape(256, Head("", 2048, 65536), "fp32"),
    Shape(256, Head("", 1024, 262144), "bf16"),
    Shape(1024, Head("", 1024, 131072), "bf16"),
    Shape(2048, Head("", 576, 49152), "fp32"),
    Shape(4096, Head("", 576, 49152), "bf16"),
    Shape(16384, Head("", 512, 32768), "bf16"),
)


def problem(shape: Shape, device: torch.device) -> Problem:
    """Return random operands without an exact result."""
    generator = torch.Generator().manual_seed(0)
    head, dtype = shape.head, DTYPES[shape.dtype]
    hidden = torch.randn(shape.rows, head.size, generator=generator)
    weight = torch.randn(head.vocabulary, head.size, generator=generator) / head.size**0.5
    targets = torch.randint(head.vocabulary, (shape.rows,), generator=generator)
    upstream = torch.randn(shape.rows, generator=generator).to(device)
    operands = (hidden.to(device, dtype), weight.to(device, dtype))
    none = Truth(upstream, upstream, upstream)
    return Problem(OP, None, *operands, none, targets.to(device), upstream)


def plan_of(problem: Problem, choice: Choice) -> Plan:
    """Return the plan of the choice, on the backend that the op would take."""
    hidden, weight = problem.hidden, problem.weight
    return engine.make_plan(
        hidden.shape[0],
        weight.shape[0],
        weight.shape[1],
        hidden.dtype,
        backend=backends.select(None, hidden.device, hidden.dtype),
        device_type=hidden.device.type,
        workspace_bytes=choice.workspace_bytes,
        tile_width=choice.width,
    )


def run(problem: Problem, choice: Choice) -> Gradients:
    """Run forward and backward by the plan of the choice, as the op does."""
    head = backends.Head(problem.hidden, problem.weight, None, problem.targets, 1.0, None)
    plan, threads = plan_of(problem, choice), torch.get_num_threads()
    try:
        torch.set_num_threads(choice.threads or threads)
        memory = _memory.empty((plan.workspace_bytes,), torch.uint8, head.hidden.device)
        scores = engine.score(head, plan, engine.Statistics(), memory)
        assert problem.upstream is not None
        upstream = problem.upstream.to(plan.precision.accumulate)
        rows = RowGradients(scores.row_max, scores.log_sum, scores.logp, upstream, None, None, None)
        needs = engine.Needs(dhidden=torch.float32, dweight=True, dbias=False)
        return engine.differentiate(head, plan, rows, memory, head.rows, needs)
    finally:
        torch.set_num_threads(threads)


def medians(problem: Problem, choices: Sequence[Choice], rounds: int) -> dict[Choice, float]:
    calls = {str(choice): partial(run, problem, choice) for choice in choices}
    seconds = measure.interleaved(calls, rounds)
    return {choice: median(seconds[str(choice)]) for choice in choices}


def search(shape: Shape, device: torch.device, rounds: int) -> list[Result]:
    """Return a result per choice tried, and last those of the best and of the default."""
    made, threads = problem(shape, device), torch.get_num_threads()
    widths = [Choice(width) for width in WIDTHS if width <= shape.head.vocabulary]
    tried = medians(made, widths, rounds)
    best = min(tried, key=tried.__getitem__)
    others = [replace(best, workspace_bytes=size) for size in (0, ALL_OF_IT)]
    if device.type == "cpu" and threads > 1:
        others.append(replace(best, threads=1))
    tried |= medians(made, [best, *others], rounds)
    best = min(tried, key=tried.__getitem__)
    results = [_result(shape, choice, seconds, rounds) for choice, seconds in tried.items()]
    last = 2 * rounds + 1
    final = medians(made, [best, Choice()], last)
    results.append(_result(shape, best, final[best], last) | {"role": "best"})
    over = final[Choice()] / final[best]
    default = _result(shape, Choice(), final[Choice()], last)
    return [*results, default | {"role": "default", "default_over_best": over}]


def _result(shape: Shape, choice: Choice, seconds: float, rounds: int) -> Result:
    workspace = choice.workspace_bytes
    return {
        "case": f"plan {shape.name}",
        "dtype": str(DTYPES[shape.dtype]).removeprefix("torch."),
        "direction": BOTH,
        "provider": "rao_kernels",
        "status": "ok",
        "N": shape.rows,
        "D": shape.head.size,
        "V": shape.head.vocabulary,
        "tile_width": choice.width,
        "workspace": {None: "default", 0: "nothing"}.get(workspace, "everything"),
        "threads": choice.threads or torch.get_num_threads(),
        "role": "tried",
        "median_s": seconds,
        "rounds": rounds,
    }


def line(results: Sequence[Result]) -> str:
    """Return the outcome of a search as a line."""
    best, default = results[-2], results[-1]
    found = f"width {best['tile_width'] or 'default'}, keeps {best['workspace']}"
    return (
        f"{default['case']:<32} {default['dtype']:<9} default {default['median_s']:.4f} s, "
        f"best {best['median_s']:.4f} s ({found}, {best['threads']} threads): "
        f"{default['default_over_best']:.2f}x"
    )
