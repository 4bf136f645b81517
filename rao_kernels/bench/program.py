"""Measure time, memory and error of rao_kernels and other libraries, errors first.

`bench compare A B` looks for regressions between two files of results, `bench plot` draws them,
`bench readme` writes the README's tables, `bench plan` searches for better plans than the default.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..errors import MissingDependencyError
from . import cases, compare, problems, providers, record, trl_step
from .providers import Provider
from .record import ROOT, Result

PROG = "rao-kernels bench"
TRL = "trl"
ALL = [*cases.DIRECTIONS]
NOTHING, INCOMPLETE = 0, 2
WIDTH = 150  # columns, where the output is not a terminal


def main(argv: Sequence[str]) -> int:
    """Run the program; return its exit status."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the memory pass would write to the screen
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "compare": _compare,
        "plot": _plot,
        "readme": _readme,
        "plan": _plan,
    }
    try:
        if argv and argv[0] in commands:
            return commands[argv[0]](argv[1:])
        return _run(argv)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(str(error.name), "bench") from error


def _parser(command: str, text: str | None, end: str | None = None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"{PROG} {command}".strip(),
        description=text,
        epilog=end,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _device_options(parser: argparse.ArgumentParser) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"cpu or cuda; default {device}")
    threads = torch.get_num_threads()
    parser.add_argument(
        "--threads", type=int, default=threads, help=f"threads of torch; default {threads}"
    )
    parser.add_argument(
        "--out", type=Path, help=f"folder of the results; default {record.FOLDER}/<machine>"
    )


def _run_options(parser: argparse.ArgumentParser) -> None:
    suites, dtypes = [*cases.SUITES, TRL], [*cases.DTYPES]
    help_ = (
        "groups of cases; trl: a step of its trainer; default readme, with --cases or --list all"
    )
    parser.add_argument("--suites", nargs="+", choices=suites, help=help_)
    help_ = "print the cases with their suites and rough times, and measure nothing"
    parser.add_argument("--list", action="store_true", help=help_)
    help_ = "of hidden states and head; default both"
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=dtypes, help=help_)
    help_ = "passes that are timed; default all"
    parser.add_argument(
        "--directions", nargs="+", choices=cases.DIRECTIONS, default=ALL, help=help_
    )
    help_ = "parts of names of cases, as --list, the tables and the README have them; default all"
    parser.add_argument("--cases", nargs="+", default=[], help=help_)
    parser.add_argument("--providers", nargs="+", default=[], help="parts of names; default all")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each; default 7")
    parser.add_argument(
        "--budget", type=float, default=60.0, help="seconds to time a case in; default 60"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=20.0,
        help="seconds of a call after the first; slower ones are not timed; default 20",
    )
    help_ = "begin no case after this many minutes, and name those left out; default no limit"
    parser.add_argument("--minutes", type=float, default=math.inf, help=help_)
    help_ = f"folder with {problems.REAL_TEXT}, the hidden states of real text"
    shared = (ROOT.parent if record.IN_CHECKOUT else Path()) / "shared"
    parser.add_argument("--shared", type=Path, default=shared, help=help_)
    _device_options(parser)


def _run(argv: Sequence[str]) -> int:
    parser = _parser("", __doc__, _suite_times())
    _run_options(parser)
    options = parser.parse_args(argv)
    choice = _choice(options)
    device = torch.device(options.device)
    picked, with_trl = choice.cases(device.type), _has_trl(choice)
    if not picked and not with_trl:
        parser.error(f"--cases {options.cases}: no case has such a name; --list prints all names")
    if options.list:
        return _list(picked, device.type, with_trl)
    torch.set_num_threads(options.threads)
    chosen = providers.chosen(device, options.providers)
    needs = {provider.name: provider.packages for provider in chosen} | {"tables": ("rich",)}
    if with_trl:
        needs["the step of TRL"] = ("trl", "transformers", "datasets")
    if lacking := providers.missing(needs):
        return _incomplete(lacking)
    picked = [case for case in picked if _has_data(case, options.shared)]
    _measure(picked, chosen, device, options, with_trl)
    return NOTHING


def _choice(options: argparse.Namespace) -> cases.Choice:
    """Return the choice; suites default to "readme", or to all where cases are named or listed."""
    everything = options.list or options.cases
    suites = options.suites or ([*cases.SUITES, TRL] if everything else ["readme"])
    return cases.Choice(suites, options.dtypes, options.directions, options.cases)


def _has_trl(choice: cases.Choice) -> bool:
    return TRL in choice.suites and choice.has(trl_step.Size().case)


def _incomplete(lacking: dict[str, list[str]]) -> int:
    """Print the missing packages and fail, because tables without a library would be incomplete."""
    for package, names in lacking.items():
        print(f"{PROG}: {package} is not installed; needed by: {', '.join(names)}", file=sys.stderr)
    print(
        f"{PROG}: install all peers with: pip install 'rao-kernels[bench]' (in a checkout: pip "
        "install --no-build-isolation -e '.[bench]'), or choose among the providers with "
        "--providers",
        file=sys.stderr,
    )
    return INCOMPLETE


def _suite_times() -> str:
    """Return the time of each suite, from the rough times of its cases."""
    seconds = dict.fromkeys(cases.SUITES, 0.0)
    for case in cases.CASES:
        seconds[case.suite] += sum(map(case.seconds, case.directions))
    times = ", ".join(f"{suite} {cases.minutes(total)}" for suite, total in seconds.items())
    return (
        "whole suites, all providers, on two cores with AVX-512 BF16, take about:\n"
        f"  {times}, {TRL} {cases.minutes(trl_step.SECONDS)}"
    )


def _list(picked: Sequence[cases.Case], device: str, with_trl: bool) -> int:
    print("suite       about  case")
    for case in picked:
        for direction in case.directions:
            name, seconds = case.label(device, direction), case.seconds(direction)
            print(f"{case.suite:<10} {seconds:>4.0f} s  {name}")
    if with_trl:
        print(f"{TRL:<10} {trl_step.SECONDS:>4.0f} s  {trl_step.Size().case}")
    print("times: all providers, on two cores with AVX-512 BF16")
    return NOTHING


def _has_data(case: cases.Case, shared: Path) -> bool:
    if problems.has_data(case, shared):
        return True
    missing = f"there is no {shared / problems.REAL_TEXT}"
    print(f"left out, {missing}: {case.suite}, {case.name('cpu')}", file=sys.stderr)
    return False


def _measure(
    picked: Sequence[cases.Case],
    chosen: Sequence[Provider],
    device: torch.device,
    options: argparse.Namespace,
    with_trl: bool,
) -> None:
    """Show and write results as they come, so that an interrupted run keeps those it has."""
    from rich.console import Console

    from . import run, table
    from .progress import Progress

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    facts, folder = record.surroundings(device), options.out or record.folder_of(device)
    until = time.monotonic() + 60 * options.minutes
    rounds = options.rounds
    settings = run.Settings(device, options.shared, rounds, options.budget, options.limit, until)
    tables = [
        (case.label(device.type, direction), case.seconds(direction))
        for case in picked
        for direction in case.directions
    ]
    if with_trl:
        tables.append((trl_step.Size().case, trl_step.SECONDS))
    written: Path | None = None

    def write(results: list[Result]) -> None:
        nonlocal written
        written = record.write(results, folder, facts)

    with Progress(console, [seconds for _, seconds in tables]) as progress:

        def show(results: list[Result]) -> None:
            progress.finish()
            table.show([facts | result for result in results], console)

        for results in run.measured(picked, chosen, settings, write, progress.note):
            show(results)
        if with_trl and time.monotonic() <= until:
            progress.note(trl_step.Size().case, "before and after enable()")
            results = trl_step.measured(rounds, device)
            write(results)
            show(results)
    for name, _ in tables[progress.finished :]:
        print(f"left out, {options.minutes:g} minutes have passed: {name}", file=sys.stderr)
    print("results:", written or "none, no case is chosen")


def _compare(argv: Sequence[str]) -> int:
    parser = _parser(
        "compare", "Compare two files of results; status 1 if rao_kernels is worse in B."
    )
    parser.add_argument(
        "a", type=Path, metavar="A", help="file of results, or a folder: its newest"
    )
    parser.add_argument("b", type=Path, metavar="B", help="the same, to compare with A")
    parser.add_argument("--threshold", type=float, default=1.10, help="ratio; default 1.10")
    parser.add_argument("--everyone", action="store_true", help="show the other libraries too")
    options = parser.parse_args(argv)
    for path in (options.a, options.b):
        if not path.exists():
            parser.error(f"{path} does not exist")
    return compare.compare(options.a, options.b, options.threshold, options.everyone)


def _plot(argv: Sequence[str]) -> int:
    parser = _parser("plot", "Draw readme.png (speed, error, memory) and benchmarks.png (growth).")
    help_ = (
        "files of results, or folders: their newest; all are drawn (default: each suite's newest "
        "of the first machine)"
    )
    parser.add_argument("results", type=Path, nargs="*", help=help_)
    parser.add_argument("--out", type=Path, default=Path(), help="folder; default the current one")
    options = parser.parse_args(argv)
    from .plot import draw

    paths = options.results
    if not paths:
        machine = next(iter(record.folders(cases.SUITES[0])), None)
        if machine is None:
            parser.error(f"there are no results in {record.FOLDER}; name the files to draw")
        paths = list(record.newest_of_each(machine, cases.SUITES).values())
    results = [one for path in dict.fromkeys(paths) for one in record.read(path)]
    print("pictures:", *draw(results, options.out))
    return NOTHING


def _readme(argv: Sequence[str]) -> int:
    _parser("readme", "Write the README's tables from the newest results.").parse_args(argv)
    from . import readme

    if not readme.README.exists():
        print(f"{PROG}: there is no {readme.README}: run it in a checkout", file=sys.stderr)
        return INCOMPLETE
    readme.main()
    return NOTHING


def _plan(argv: Sequence[str]) -> int:
    from . import plan

    parser = _parser("plan", plan.__doc__)
    parser.add_argument(
        "--rounds", type=int, default=2, help="timed calls of each choice; the final ones take more"
    )
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
        results = plan.search(shape, device, options.rounds)
        print(plan.line(results), flush=True)
        path = record.write(results, folder, facts)
    print("results:", path or "none, no shape is chosen")
    return NOTHING
