"""`rao-kernels bench`: time, memory and error of the op and the losses, beside other libraries.

The suite is the folder `bench` of a checkout; a wheel carries it as `rao_kernels.bench`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ..errors import MissingDependencyError

_CHECKOUT = Path(__file__).parents[2]


def run(argv: Sequence[str]) -> None:
    """Run the suite's program; its status is the command's."""
    if status := _program().main(argv):
        raise SystemExit(status)


def _program() -> ModuleType:
    try:
        if (_CHECKOUT / "bench" / "program.py").exists():
            if str(_CHECKOUT) not in sys.path:
                sys.path.insert(0, str(_CHECKOUT))
            return importlib.import_module("bench.program")
        return importlib.import_module("rao_kernels.bench.program")
    except ImportError as error:
        raise MissingDependencyError(str(error.name), "bench") from error
