"""``python -m bench.readme``: writes the README's table of numbers from the newest result rows."""

from __future__ import annotations

import json
from pathlib import Path

from .record import FOLDER

README = FOLDER.parents[1] / "README.md"
BEGIN, END = "<!-- numbers: begin -->\n", "<!-- numbers: end -->"
DIRECTIONS = {"forward": "forward", "both": "forward and backward"}


def newest(folder: Path = FOLDER / "cpu") -> Path:
    return max(folder.glob("*.jsonl"), key=lambda path: path.name)


def table(path: Path) -> str:
    """Markdown: one line for each case, dtype, direction and provider."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    first = rows[0]
    lines = [
        f"The op on {first['device']} ({first['isa']}), torch {first['torch']}, commit "
        f"{first['commit']}; medians, calls interleaved, rows in "
        f"[{path.relative_to(README.parent)}]({path.relative_to(README.parent)}). The floor is the "
        "products alone, through torch: one for the forward, three for both. Errors are against "
        "float64: the largest of the log-probs, the relative ones of the gradients.",
        "",
        "| case | | | seconds | x products | log-prob error | dhidden | dweight | extra MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in rows if row["status"] == "ok"]
    return "\n".join(lines) + "\n"


def _line(row: dict) -> str:
    errors = [
        f"{row[name]:.1e}" if row["direction"] == "both" and name in row else ""
        for name in ("logp_error", "dhidden_error", "dweight_error")
    ]
    extra = f"{row['peak_extra_bytes'] / 2**20:.0f}" if "peak_extra_bytes" in row else ""
    cells = [
        f"{row['case']}, {row['dtype']}",
        DIRECTIONS[row["direction"]],
        row["provider"],
        f"{row['median_s']:.3f}",
        f"{row['ratio_to_gemms']:.2f}",
        *errors,
        extra,
    ]
    return "| " + " | ".join(cells) + " |"


def filled(text: str, numbers: str) -> str:
    """The README's text with `numbers` between its marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + numbers + END + rest.split(END)[1]


def main() -> None:
    README.write_text(filled(README.read_text(), table(newest())))


if __name__ == "__main__":
    main()
