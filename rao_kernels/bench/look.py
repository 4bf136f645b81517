"""The results of a first look: written and printed one by one, whatever becomes of the next."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import backends
from . import record
from .cases import OP, Head
from .problems import Problem
from .providers import Unsupported
from .record import Result

DTYPE = torch.bfloat16
SUITE = "first"


@dataclass(frozen=True)
class Size:
    """Shapes of a look. checked: heads whose errors are found, on `checked_rows`; few: small N."""

    rows: int
    head: Head
    checked: tuple[Head, ...]
    checked_rows: int
    few: tuple[int, ...]


# On an H200 Triton runs its fused kernels at D = 1024, and the vendor's GEMM at D = 4096. Errors
# are found on rows enough for several tiles, as those that are timed have.
FULL = Size(
    rows=8192,
    head=Head("", 4096, 131072),
    checked=(Head("", 4096, 131072), Head("", 1024, 32768), Head("", 1024, 32768, softcap=30.0)),
    checked_rows=4224,
    few=(64, 128, 256, 512, 1024),
)
SMALL = Size(
    rows=256,
    head=Head("", 32, 16384),
    checked=(Head("", 32, 3000), Head("", 32, 3000, softcap=15.0)),
    checked_rows=40,
    few=(8, 16),
)


@dataclass
class Look:
    """A look in progress. until: no call begins after this `time.monotonic()`."""

    device: torch.device
    size: Size
    out: Path
    rounds: int
    until: float
    failed: bool = False
    facts: Result = field(default_factory=dict)
    gemms: dict[tuple[str, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.facts = record.surroundings(self.device)

    @property
    def backends(self) -> list[str]:
        """Those that run here; on a CPU not Triton, of which only the interpreter does."""
        reasons = backends.reasons(self.device, DTYPE)
        return [
            name
            for name, reason in reasons.items()
            if reason is None and not (name == "triton" and self.device.type == "cpu")
        ]

    def emit(self, result: Result) -> None:
        """Write a result and print it as a line."""
        self.failed |= result["status"] in ("wrong", "failed")
        record.write([{"suite": SUITE, "task": OP} | result], self.out / "rows", self.facts)
        print(line(result), flush=True)

    def attempt(self, about: Result, find: Callable[..., Result], *arguments: object) -> None:
        """Emit `about` with what `find` returns of the arguments, or with why it does not."""
        if time.monotonic() > self.until:
            print(f"left out, no time: {line(about | {'status': ''})}", file=sys.stderr)
            return
        try:
            found = {"status": "ok"} | find(*arguments)
        except Unsupported as reason:
            found = {"status": "unsupported", "reason": str(reason)}
        except Exception as error:
            traceback.print_exc()
            found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}
        self.emit(about | found)


def line(result: Result) -> str:
    """Return a result as a line of text."""
    about = f"{result['case'][:44]:<44} {result['direction']:<7} {result['provider'][:44]:<44}"
    if result["status"] != "ok":
        about += f" {result['status']}: {result.get('reason', '')}"
    parts: dict[str, Callable[[float], str]] = {
        "median_s": lambda value: f"{value * 1e3:9.3f} ms",
        "tflops": lambda value: f"{value:6.1f} TFLOP/s",
        "ratio_to_gemms": lambda value: f"{value:5.2f} x GEMMs",
        "peak_extra_bytes": lambda value: f"{value / 2**20:7.0f} MiB",
        "kept_share": lambda value: f"keeps {value:.3f}",
        "logp_error": lambda value: f"logp {value:.1e}",
        "dhidden_error": lambda value: f"dhidden {value:.1e}",
        "dweight_error": lambda value: f"dweight {value:.1e}",
    }
    return " ".join([about, *(show(result[key]) for key, show in parts.items() if key in result)])


def about(case: str, problem: Problem, direction: str, name: str) -> Result:
    """Return the fields that say what a result is of."""
    (rows, size), vocabulary = problem.hidden.shape, len(problem.weight)
    return {
        "case": f"{case} N={rows} D={size} V={vocabulary}",
        "dtype": str(DTYPE).removeprefix("torch."),
        "N": rows,
        "D": size,
        "V": vocabulary,
        "direction": direction,
        "provider": name,
    }
