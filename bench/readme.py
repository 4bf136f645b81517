"""``bench readme``: writes the README's tables of numbers from the newest result rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import record
from .cases import BOTH, FROZEN, OP
from .isolated import TOO_SLOW
from .providers import YARDSTICK
from .providers.ours import DEFAULT, SPARSE
from .record import HERE, Row
from .table import errors
from .trl_step import SUITE as TRL
from .trl_step import WITH, WITHOUT

README = HERE.parent / "README.md"
BEGIN, END = "<!-- numbers: begin -->\n", "<!-- numbers: end -->"
MIB = 2**20
LOSSES = {
    "rao": "RAO",
    "sigmoid": "DPO",
    "simpo": "SimPO",
    "grpo": "GRPO",
    "kto": "KTO",
    "sft": "SFT",
}
WORDS = {"probe (SmolLM2-135M, real text)": "real text, SmolLM2 135M"}
SUITES = ("readme", "real", "heads")
SHORT = {"bfloat16": "bf16", "float32": "fp32"}
NAMES = {
    YARDSTICK: "plain torch",
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


def tables() -> str:
    """Markdown: the tables of every machine whose rows are committed."""
    machines = record.folders(SUITES[0])
    if len(machines) == 1:
        return table(machines[0])
    return "\n".join(f"### {_machine(folder)}\n\n{table(folder)}" for folder in machines)


def _machine(folder: Path) -> str:
    first = record.read(record.newest(folder, SUITES[0]))[0]
    return f"{first['device']} ({first['isa']})"


def table(folder: Path) -> str:
    """Markdown: the first case in full, then our time and every peer's beside it, case by case.

    Each suite is shown as it was last run.
    """
    files = record.newest_of_each(folder, (*SUITES, TRL))
    rows = [row for suite, path in files.items() for row in _of_suite(suite, path)]
    parts = (_head(rows, list(dict.fromkeys(files.values()))), _full(rows), *_rest(rows))
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_suite(suite: str, path: Path) -> list[Row]:
    return [row for row in record.read(path) if row.get("suite") == suite]


def _head(rows: Sequence[Row], paths: Sequence[Path]) -> str:
    first, places = rows[0], [path.relative_to(README.parent) for path in paths]
    commits = " and ".join(dict.fromkeys(row["commit"] for row in rows))
    links = ", ".join(f"[{place}]({place})" for place in places)
    return (
        f"Measured on {first['device']} ({first['isa']}), torch {first['torch']}, commit "
        f"{commits}; medians of calls that took turns; what was too slow for that ran by itself "
        "beside its own products. Every row, with quantiles, versions and errors: "
        f"{links}. *x products* is the time as a multiple of the bare "
        "matrix products a method that skips nothing has to make (one for a forward, three for "
        "both), through torch, in the same run, each result allocated as it is by everybody else "
        "here; *out= given* writes into memory that is there and warm. Errors are against float64."
    )


def _full(rows: Sequence[Row]) -> str:
    """Every provider on the case that stands first, forward and backward."""
    first = rows[0]
    mine = [row for row in _timed(rows, BOTH) if _same_case(row, first)]
    lines = [
        f"**{_title(first)}: log-probs of {first['N']} tokens and both gradients**"
        if "N" in first
        else f"**{_title(first)}: log-probs and both gradients**",
        "",
        "| | seconds | x products | log-prob error | dhidden | dweight | extra MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(mine, key=lambda row: row["median_s"]):
        cells = [
            f"**{row['provider']}**" if row["provider"] in (DEFAULT, SPARSE) else row["provider"],
            f"{row['median_s']:.3f}",
            f"{row['ratio_to_gemms']:.2f}",
            *errors(row),
            f"{row['peak_extra_bytes'] / MIB:.0f}" if row.get("peak_extra_bytes", 0) > 0 else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    left = [row for row in rows if _same_case(row, first) and row["direction"] == BOTH]
    return "\n".join([*lines, *_not_timed([row for row in left if "median_s" not in row])])


def _not_timed(rows: Sequence[Row]) -> list[str]:
    """A sentence on those that gave no time."""
    told = [
        f"{row['provider']}: {row['status']} ({row.get('reason', 'errors')})"
        for row in rows
        if row["status"] != "unsupported"
    ]
    return ["", f"Not timed: {'; '.join(told)}."] if told else []


def _rest(rows: Sequence[Row]) -> list[str]:
    """Seconds of ours and, of every peer, how many times as long it takes."""
    timed = [row for row in rows if row["provider"] == DEFAULT and "median_s" in row]
    timed = [row for row in timed if row["direction"] in (BOTH, FROZEN)]
    timed = [row for row in timed if row.get("suite") in SUITES]
    present = {row["provider"] for row in rows if "median_s" in row}
    peers = [name for name in NAMES if name in present]
    if not timed or not peers:
        return [_trl(rows)]
    lines = [
        "**rao_kernels at its defaults, and how many times as long the others take**, forward and "
        "backward",
        "",
        "| case | rao_kernels, s | x products | sparse 2^-9 | "
        + " | ".join(NAMES[name] for name in peers)
        + " |",
        "|---" * (4 + len(peers)) + "|",
    ]
    for ours in timed:
        others = [row for row in rows if _same_case(row, ours)]
        others = [row for row in others if row["direction"] == ours["direction"]]
        frozen = ", frozen head" if ours["direction"] == FROZEN else ""
        cells = [
            _title(ours) + frozen,
            f"{ours['median_s']:.3f}",
            f"{ours['ratio_to_gemms']:.2f}",
            *(_beside(ours, others, name) for name in (SPARSE, *peers)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return ["\n".join(lines), _trl(rows)]


def _beside(ours: Row, rows: Sequence[Row], name: str) -> str:
    row = next((row for row in rows if row["provider"] == name), None)
    if row is None or row["status"] == "unsupported":
        return ""
    if "median_s" in row:  # each in multiples of the floor of its own run
        return f"{row['ratio_to_gemms'] / ours['ratio_to_gemms']:.2f}x"
    if row["status"] == TOO_SLOW and "call_s" in row:
        return f"over {row['call_s'] / ours['median_s']:.0f}x"
    return str(row["status"])


def _trl(rows: Sequence[Row]) -> str:
    """A sentence on TRL's step."""
    found = {row["provider"]: row for row in rows if row.get("suite") == TRL}
    if not {WITHOUT, WITH} <= set(found):
        return ""
    before, after = found[WITHOUT], found[WITH]
    return (
        f"{before['case']} ({before['dtype']}): {before['median_s']:.2f} s and "
        f"{before['peak_extra_bytes'] / MIB:.0f} MiB with TRL {before['packages']['trl']} alone, "
        f"{after['median_s']:.2f} s and {after['peak_extra_bytes'] / MIB:.0f} MiB after "
        "`rao_kernels.integrations.trl.enable()`."
    )


def _title(row: Row) -> str:
    """The case, in words a newcomer knows."""
    case, task = row["case"], row.get("task", OP)
    if task in LOSSES:
        case = f"{LOSSES[task]}, {case.removeprefix(task).strip()}"
    for long, short in WORDS.items():
        case = case.replace(long, short)
    return f"{case}, {SHORT.get(row['dtype'], row['dtype'])}"


def _same_case(a: Row, b: Row) -> bool:
    return bool(a["case"] == b["case"] and a["dtype"] == b["dtype"])


def _timed(rows: Sequence[Row], direction: str) -> list[Row]:
    return [row for row in rows if row["direction"] == direction and "median_s" in row]


def filled(text: str, numbers: str) -> str:
    """The README's text with `numbers` between its marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + numbers + END + rest.split(END)[1]


def main() -> None:
    README.write_text(filled(README.read_text(), tables()))


if __name__ == "__main__":
    main()
