"""`rao-kernels COMMAND ...`: runs the command, and prints the package's errors as one line."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import select
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import ModuleType

from ..errors import (
    BackendError,
    DataError,
    DivergedError,
    InputError,
    IntegrationError,
    MissingDependencyError,
    NotYetError,
)

_STAGES = {
    "training, in the order of a pipeline": {
        "sft": "fine-tune a model on prompts with answers",
        "reward-model": "train a reward model on pairs",
        "generate": "sample responses to prompts",
        "annotate": "score the responses of records with a reward model, a judge or a rule",
        "cache-ref": "compute the reference log-probs of a training set ahead of training",
        "train": "align a model with RAO or another loss on preference data",
        "online": "align a model on responses that it samples while it trains",
        "eval": "compare models on held-out prompts",
    },
    "the library": {
        "losses": "list the losses, their hyperparameters and what they need",
        "bench": "measure time, memory and error beside other libraries, on this machine",
        "doctor": "say what is installed and built, and which backend runs on this machine",
        "demo": "align a small real model with RAO and DPO, from download to picture",
    },
}
COMMANDS = {name: text for stage in _STAGES.values() for name, text in stage.items()}
# Commands that have an extra of their own; the others need that of training.
_EXTRAS = ("demo", "bench")
_ERRORS = (
    *(BackendError, DataError, DivergedError, InputError),
    *(IntegrationError, MissingDependencyError, NotYetError),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: one of those in docs/cli.md."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments == ["--version"]:
        print(f"rao-kernels {importlib.metadata.version('rao-kernels')}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"rao-kernels: no command {name!r}{hint}\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        with _short_warnings(name):
            # Each command imports its own needs: `doctor` must run where transformers is missing.
            _import_command(name).run(rest)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        # Else Python would write what is left when it exits, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except _ERRORS as error:
        print(f"rao-kernels {name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        where = f": {stop}" if str(stop) else ""
        print(f"\nrao-kernels {name}: interrupted{where}", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _short_warnings(name: str) -> Iterator[None]:
    """Print warnings without the source line that Python adds, which means nothing to a user."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"rao-kernels {name}: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _output_is_closed() -> bool:
    """Return whether stdout is a pipe that nobody reads any more, as behind ``| head``."""
    found = select.poll()
    found.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in found.poll(0))


def _import_command(name: str) -> ModuleType:
    """Import the module of a command; name the extra that brings a package it lacks."""
    try:
        return importlib.import_module(f".{name.replace('-', '_')}", __package__)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == __package__.partition(".")[0]:
            raise
        raise MissingDependencyError(package, name if name in _EXTRAS else "train") from error


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: rao-kernels COMMAND [options]", "       rao-kernels --version"]
    for stage, commands in _STAGES.items():
        lines += ["", f"{stage}:"]
        lines += [f"  {name:<{width}}  {text}" for name, text in commands.items()]
    return "\n".join([*lines, "", "COMMAND --help for its options"])
