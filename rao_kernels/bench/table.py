"""Results on the terminal: one table per case and direction."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from . import record
from .cases import label
from .isolated import TOO_SLOW
from .providers.ours import DEFAULT
from .record import Result

MIB = 2**20
COLUMNS = (
    "",
    "median s",
    "q10 .. q90",
    "x GEMMs",
    f"x {DEFAULT}",
    "value error",
    "dhidden",
    "dweight",
    "extra MiB",
)


def show(results: Sequence[Result], console: Console) -> None:
    """Print the providers of one case and direction, the fastest first; below them those not
    timed."""
    first = results[0]
    limits = record.limits_of(first)
    title = label(first["case"], first["dtype"], first["direction"])
    table = Table(title=f"{title}{f' ({limits})' if limits else ''}", title_justify="left")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    ours = next(
        (result.get("median_s") for result in results if result["provider"] == DEFAULT), None
    )
    for result in sorted(results, key=lambda result: result.get("median_s", 0.0)):
        if "median_s" in result:
            table.add_row(*cells(result, ours))
    console.print(table)
    for result in results:
        if "median_s" not in result:
            console.print(not_timed(result), highlight=False)
    console.print()


def cells(result: Result, ours: float | None) -> list[str]:
    """Return the cells of a provider that was timed."""
    return [
        result["provider"],
        f"{result['median_s']:.4f}",
        f"{result['q10_s']:.4f} .. {result['q90_s']:.4f}",
        f"{result['ratio_to_gemms']:.2f}",
        f"{result['median_s'] / ours:.2f}" if ours else "",
        *errors(result),
        f"{result['peak_extra_bytes'] / MIB:.0f}" if "peak_extra_bytes" in result else "",
    ]


def errors(result: Result) -> list[str]:
    """Return the errors of the value (log-probs or loss), dhidden and dweight; empty where none."""
    value = result.get("logp_error", result.get("loss_error"))
    found = (value, result.get("dhidden_error"), result.get("dweight_error"))
    return ["" if error is None else f"{error:.1e}" for error in found]


def not_timed(result: Result) -> str:
    """Return a line on a provider that was not timed; one that was too slow has a time of one
    call."""
    told = [result["status"]]
    if result["status"] == TOO_SLOW and "call_s" in result:
        told.append(f"{result['call_s']:.1f} s")
    told.append(result.get("reason", ""))
    found = zip(("value", "dhidden", "dweight"), errors(result), strict=True)
    told.append(" ".join(f"{name} {error}" for name, error in found if error))
    return f"  {result['provider']}: {', '.join(part for part in told if part)}"
