"""The program ``rao-kernels bench``: measures every provider, correctness first.

`bench compare A B` looks for regressions between two files of rows, `bench plot` draws them,
`bench readme` writes the README's tables, `bench plan` searches for better plans than the default.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from . import cases, compare, providers, record
from .providers import Provider
from .record import HERE, Row

PROG = "rao-kernels bench"
TRL = "trl"
ALL = [*cases.DIRECTIONS]
NOTHING, INCOMPLETE = 0, 2
WIDTH = 150  # where no terminal says its own


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the memory pass would write to the screen
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "compare": _compare,
        "plot": _plot,
        "readme": _readme,
        "plan": _plan,
    }
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    return _run(argv)


def _parser(command: str, text: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"{PROG} {command}".strip(),
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _device_options(parser: argparse.ArgumentParser) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"cpu or cuda; here {device}")
    threads = torch.get_num_threads()
    parser.add_argument("--threads", type=int, default=threads, help=f"of torch; here {threads}")
    parser.add_argument("--out", type=Path, help="folder of the rows; default bench/results/...")


def _run_options(parser: argparse.ArgumentParser) -> None:
    suites, dtypes = [*cases.SUITES, TRL], ("bf16", "fp32")
    help_ = "groups of cases; trl is a step of its DPO trainer; default readme"
    parser.add_argument("--suites", nargs="+", choices=suites, default=["readme"], help=help_)
    help_ = "of hidden states and head; default both"
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=[*dtypes], help=help_)
    help_ = "passes that are timed; default all"
    parser.add_argument(
        "--directions", nargs="+", choices=cases.DIRECTIONS, default=ALL, help=help_
    )
    parser.add_argument("--cases", nargs="+", default=[], help="parts of names of cases")
    parser.add_argument("--providers", nargs="+", default=[], help="parts of names; default all")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each; default 7")
    parser.add_argument(
        "--budget", type=float, default=60.0, help="seconds to time a case in; default 60"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=20.0,
        help="seconds of a call; slower ones are not timed; default 20",
    )
    help_ = "folder with data/probe_train.safetensors, the hidden states of real text"
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared", help=help_)
    _device_options(parser)


def _run(argv: Sequence[str]) -> int:
    parser = _parser("", __doc__)
    _run_options(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    chosen = providers.chosen(device, options.providers)
    needs = {provider.name: provider.packages for provider in chosen}
    if TRL in options.suites:
        needs["the step of TRL"] = ("trl", "transformers", "datasets")
    if lacking := providers.missing(needs):
        return _incomplete(lacking)
    picked = [
        case
        for case in cases.chosen(options.suites, options.dtypes, options.directions)
        if _is_wanted(case, device.type, options.cases) and _has_data(case, options.shared)
    ]
    _measure(picked, chosen, device, options)
    return NOTHING


def _incomplete(lacking: dict[str, list[str]]) -> int:
    """A run without a peer would say nothing about it: it fails instead."""
    for package, names in lacking.items():
        print(f"{PROG}: {package} is not installed; needed by: {', '.join(names)}", file=sys.stderr)
    print(
        f"{PROG}: install all peers with: pip install 'rao-kernels[bench]' (in a checkout: pip "
        "install -e '.[bench]'), or choose among the providers with --providers",
        file=sys.stderr,
    )
    return INCOMPLETE


def _is_wanted(case: cases.Case, device: str, parts: Sequence[str]) -> bool:
    name = case.name(device).lower()
    return not parts or any(part.lower() in name for part in parts)


def _has_data(case: cases.Case, shared: Path) -> bool:
    if case.logits != "probe" or (shared / "data" / "probe_train.safetensors").exists():
        return True
    print(f"left out, there is no probe in {shared}: {case.name('cpu')}", file=sys.stderr)
    return False


def _measure(
    picked: Sequence[cases.Case],
    chosen: Sequence[Provider],
    device: torch.device,
    options: argparse.Namespace,
) -> None:
    """Rows are shown and written as they come: a run that is ended leaves what it had."""
    from rich.console import Console

    from . import run, table, trl_step

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    facts, folder = record.surroundings(device), options.out or record.folder_of(device)
    settings = run.Settings(device, options.shared, options.rounds, options.budget, options.limit)

    def keep(rows: list[Row]) -> Path:
        table.show(rows, console)
        return record.write(rows, folder, facts)

    written = None
    for rows in run.measured(picked, chosen, settings):
        written = keep(rows)
    if TRL in options.suites:
        written = keep(trl_step.measured(options.rounds, device))
    print("rows:", written or "none, no case is chosen")


def _compare(argv: Sequence[str]) -> int:
    parser = _parser("compare", "Is B slower, larger or less right than A? Status 1 if so.")
    parser.add_argument("a", type=Path, metavar="A", help="file of rows, or a folder: its newest")
    parser.add_argument("b", type=Path, metavar="B", help="the same, to compare with A")
    parser.add_argument("--threshold", type=float, default=1.10, help="ratio; default 1.10")
    parser.add_argument("--everyone", action="store_true", help="show the other libraries too")
    options = parser.parse_args(argv)
    for path in (options.a, options.b):
        if not path.exists():
            parser.error(f"{path} does not exist")
    return compare.compare(options.a, options.b, options.threshold, options.everyone)


def _plot(argv: Sequence[str]) -> int:
    parser = _parser("plot", "Draws time, memory, errors and the cost of the vocabulary.")
    help_ = (
        "files of rows, or folders: their newest; all are drawn (default: each suite's newest of "
        "the first machine)"
    )
    parser.add_argument("rows", type=Path, nargs="*", help=help_)
    out = Path("benchmarks.png")
    parser.add_argument("--out", type=Path, default=out, help=f"picture; default {out}")
    options = parser.parse_args(argv)
    from .plot import draw

    paths = options.rows
    if not paths:
        machine = next(iter(record.folders(cases.SUITES[0])), None)
        if machine is None:
            parser.error(f"there are no rows in {record.FOLDER}; say which to draw")
        paths = list(record.newest_of_each(machine, cases.SUITES).values())
    draw([row for path in dict.fromkeys(paths) for row in record.read(path)], options.out)
    print("picture:", options.out)
    return NOTHING


def _readme(argv: Sequence[str]) -> int:
    _parser("readme", "Writes the README's tables from the newest rows.").parse_args(argv)
    from . import readme

    if not readme.README.exists():
        print(f"{PROG}: there is no {readme.README}: run it in a checkout", file=sys.stderr)
        return INCOMPLETE
    readme.main()
    return NOTHING


def _plan(argv: Sequence[str]) -> int:
    from . import plan

    parser = _parser("plan", plan.__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="of each choice; the end takes more")
    parser.add_argument("--shapes", nargs="+", default=[], help="parts of names, such as N=64")
    _device_options(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    facts, folder = record.surroundings(device), options.out or record.folder_of(device) / "plan"
    path = None
    parts = options.shapes
    for shape in plan.SHAPES:
        if parts and not set(parts) & set(shape.name.split()):
            continue
        rows = plan.search(shape, device, options.rounds)
        print(plan.line(rows), flush=True)
        path = record.write(rows, folder, facts)
    print("rows:", path or "none, no shape is chosen")
    return NOTHING
