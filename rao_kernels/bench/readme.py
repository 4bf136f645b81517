"""``bench readme``: write the tables of numbers from the newest results.

The README gets the log-probs on real text, docs/benchmarks.md the other cases too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from . import record
from .cases import BOTH, FROZEN, label
from .isolated import TOO_SLOW
from .providers import REFERENCE
from .providers.ours import DEFAULT, SPARSE
from .record import ROOT, Result
from .table import errors
from .trl_step import SUITE as TRL
from .trl_step import WITH, WITHOUT

README = ROOT / "README.md"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- numbers: begin -->\n", "<!-- numbers: end -->"
MIB = 2**20
SUITES = ("readme", "real", "heads")
NAMES = {
    REFERENCE: "plain torch",
    "plain torch, torch.compile": "torch.compile",
    "torch linear_cross_entropy": "torch's own",
    "TRL selective_log_softmax": "TRL, logits",
    "TRL chunked log-probs": "TRL, chunked",
    "cut-cross-entropy torch_compile": "CCE",
    "cut-cross-entropy cce": "CCE",
    "Liger chunked losses": "Liger",
    "Liger cross-entropy": "Liger CE",
    "quack": "quack",
}


def tables(page: Path) -> str:
    """Return the tables for `page`: of the first machine for the README, else of every machine."""
    machines = record.folders(SUITES[0])
    if page == README:
        machines = machines[:1]
    if len(machines) == 1:
        return table(machines[0], page)
    return "\n".join(f"### {_machine(folder)}\n\n{table(folder, page)}" for folder in machines)


def _machine(folder: Path) -> str:
    return _instructions(record.read(record.newest(folder, SUITES[0]))[0])


def _instructions(result: Result) -> str:
    """Return the device, the instruction set of our kernels, and the limits of torch's."""
    limits = record.limits_of(result)
    return f"{result['device']} ({result['isa']}{f'; {limits}' if limits else ''})"


def table(folder: Path, page: Path) -> str:
    """Return the first case in full, and for benchmarks.md our time and every peer's, case by case.

    Each suite is shown as it was last run.
    """
    suites = SUITES[:1] if page == README else (*SUITES, TRL)
    files = record.newest_of_each(folder, suites)
    results = [result for suite, path in files.items() for result in _of_suite(suite, path)]
    rest = [] if page == README else _rest(results)
    parts = (_head(results, list(dict.fromkeys(files.values())), page), _full(results), *rest)
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_suite(suite: str, path: Path) -> list[Result]:
    return [result for result in record.read(path) if result.get("suite") == suite]


def _head(results: Sequence[Result], paths: Sequence[Path], page: Path) -> str:
    first, places = results[0], [os.path.relpath(path, page.parent) for path in paths]
    commits = " and ".join(dict.fromkeys(result["commit"] for result in results))
    links = ", ".join(f"[{Path(place).name}]({place})" for place in places)
    return (
        f"Measured on {_instructions(first)}, torch {first['torch']}, commit "
        f"{commits}. Medians of interleaved rounds; slow providers were timed alone, beside "
        f"bare GEMMs. Every result, with quantiles and versions: {links}. *x GEMMs* is the "
        "time over that of the bare matrix products, through torch in the same run: one for a "
        "forward, three with both gradients. They allocate their results, as all others here do; "
        "*out= given* writes into memory that exists already. Errors are against float64."
    )


def _full(results: Sequence[Result]) -> str:
    """Return the table of every provider on the first case, forward and backward."""
    first = next((one for one in results if one["direction"] == BOTH), results[0])
    mine = [result for result in _timed(results, BOTH) if _same_case(result, first)]
    lines = [
        f"**{_title(first)}: log-probs of {first['N']} tokens and both gradients**"
        if "N" in first
        else f"**{_title(first)}: log-probs and both gradients**",
        "",
        "| | seconds | x GEMMs | log-prob error | dhidden | dweight | extra MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in sorted(mine, key=lambda result: result["median_s"]):
        cells = [
            f"**{result['provider']}**"
            if result["provider"] in (DEFAULT, SPARSE)
            else result["provider"],
            f"{result['median_s']:.3f}",
            f"{result['ratio_to_gemms']:.2f}",
            *errors(result),
            f"{result['peak_extra_bytes'] / MIB:.0f}"
            if result.get("peak_extra_bytes", 0) > 0
            else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    left = [
        result for result in results if _same_case(result, first) and result["direction"] == BOTH
    ]
    return "\n".join([*lines, *_not_timed([result for result in left if "median_s" not in result])])


def _not_timed(results: Sequence[Result]) -> list[str]:
    """Return a sentence on the providers without a time."""
    told = [
        f"{result['provider']}: {result['status']} ({result.get('reason', 'errors')})"
        for result in results
        if result["status"] != "unsupported"
    ]
    return ["", f"Not timed: {'; '.join(told)}."] if told else []


def _rest(results: Sequence[Result]) -> list[str]:
    """Return a table of our seconds and, for every peer, its multiple of them; and TRL's step."""
    timed = [result for result in results if result["provider"] == DEFAULT and "median_s" in result]
    timed = [result for result in timed if result["direction"] in (BOTH, FROZEN)]
    timed = [result for result in timed if result.get("suite") in SUITES]
    present = {result["provider"] for result in results if "median_s" in result}
    peers = [name for name in NAMES if name in present]
    if not timed or not peers:
        return [_trl(results)]
    lines = [
        "**rao_kernels at its defaults, and how many times as long the others take**, forward and "
        "backward",
        "",
        "| case | rao_kernels, s | x GEMMs | sparse 2^-9 | "
        + " | ".join(NAMES[name] for name in peers)
        + " |",
        "|---" * (4 + len(peers)) + "|",
    ]
    for ours in timed:
        others = [result for result in results if _same_case(result, ours)]
        others = [result for result in others if result["direction"] == ours["direction"]]
        cells = [
            _title(ours),
            f"{ours['median_s']:.3f}",
            f"{ours['ratio_to_gemms']:.2f}",
            *(_beside(ours, others, name) for name in (SPARSE, *peers)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return ["\n".join(lines), _trl(results)]


def _beside(ours: Result, results: Sequence[Result], name: str) -> str:
    result = next((result for result in results if result["provider"] == name), None)
    if result is None or result["status"] == "unsupported":
        return ""
    if "median_s" in result:  # each in multiples of the baseline of its own run
        return f"{result['ratio_to_gemms'] / ours['ratio_to_gemms']:.2f}x"
    if result["status"] == TOO_SLOW and "call_s" in result:
        return f"over {result['call_s'] / ours['median_s']:.0f}x"
    return str(result["status"])


def _trl(results: Sequence[Result]) -> str:
    """Return a sentence on TRL's step."""
    found = {result["provider"]: result for result in results if result.get("suite") == TRL}
    if not {WITHOUT, WITH} <= set(found):
        return ""
    before, after = found[WITHOUT], found[WITH]
    return (
        f"{before['case']} ({before['dtype']}): {before['median_s']:.2f} s and "
        f"{before['peak_extra_bytes'] / MIB:.0f} MiB with TRL {before['packages']['trl']} alone, "
        f"{after['median_s']:.2f} s and {after['peak_extra_bytes'] / MIB:.0f} MiB after "
        "`rao_kernels.integrations.trl.enable()`."
    )


def _title(result: Result) -> str:
    """Return the label of the case, which ``--cases`` finds."""
    return label(result["case"], result["dtype"], result["direction"])


def _same_case(a: Result, b: Result) -> bool:
    return bool(a["case"] == b["case"] and a["dtype"] == b["dtype"])


def _timed(results: Sequence[Result], direction: str) -> list[Result]:
    return [
        result for result in results if result["direction"] == direction and "median_s" in result
    ]


def filled(text: str, numbers: str) -> str:
    """Return a page's text with `numbers` between its marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + numbers + END + rest.split(END)[1]


def main() -> None:
    for page in (README, PAGE):
        page.write_text(filled(page.read_text(), tables(page)))


if __name__ == "__main__":
    main()
