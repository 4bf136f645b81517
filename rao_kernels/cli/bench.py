"""`rao-kernels bench`: time, memory and error of the op and the losses, beside other libraries."""

from __future__ import annotations

from collections.abc import Sequence

from ..bench.program import main


def run(argv: Sequence[str]) -> None:
    """Run the benchmarks and exit with their status."""
    if status := main(argv):
        raise SystemExit(status)
