"""Result rows on the terminal: one table per case and direction."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .cases import DIRECTIONS
from .isolated import TOO_SLOW
from .providers.ours import DEFAULT
from .record import Row

MIB = 2**20
COLUMNS = (
    "",
    "median s",
    "q10 .. q90",
    "x products",
    f"x {DEFAULT}",
    "value error",
    "dhidden",
    "dweight",
    "extra MiB",
)


def show(rows: Sequence[Row], console: Console) -> None:
    """The providers of one case and direction, the quickest first; below them those not timed."""
    first = rows[0]
    title = f"{first['case']}, {first['dtype']}, {DIRECTIONS[first['direction']]}"
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    ours = next((row.get("median_s") for row in rows if row["provider"] == DEFAULT), None)
    for row in sorted(rows, key=lambda row: row.get("median_s", 0.0)):
        if "median_s" in row:
            table.add_row(*cells(row, ours))
    console.print(table)
    for row in rows:
        if "median_s" not in row:
            console.print(not_timed(row), highlight=False)
    console.print()


def cells(row: Row, ours: float | None) -> list[str]:
    """The cells of a provider that was timed."""
    return [
        row["provider"],
        f"{row['median_s']:.4f}",
        f"{row['q10_s']:.4f} .. {row['q90_s']:.4f}",
        f"{row['ratio_to_gemms']:.2f}",
        f"{row['median_s'] / ours:.2f}" if ours else "",
        *errors(row),
        f"{row['peak_extra_bytes'] / MIB:.0f}" if "peak_extra_bytes" in row else "",
    ]


def errors(row: Row) -> list[str]:
    """Of the value (log-probs or loss), dhidden and dweight; empty where there is none."""
    value = row.get("logp_error", row.get("loss_error"))
    found = (value, row.get("dhidden_error"), row.get("dweight_error"))
    return ["" if error is None else f"{error:.1e}" for error in found]


def not_timed(row: Row) -> str:
    """A line on a provider that was not timed. One that was too slow has a time all the same."""
    told = [row["status"]]
    if row["status"] == TOO_SLOW and "call_s" in row:
        told.append(f"{row['call_s']:.1f} s")
    told.append(row.get("reason", ""))
    found = zip(("value", "dhidden", "dweight"), errors(row), strict=True)
    told.append(" ".join(f"{name} {error}" for name, error in found if error))
    return f"  {row['provider']}: {', '.join(part for part in told if part)}"
