"""``bench compare A B``: is B slower or larger than A, or worse?

Machines differ from day to day: what is compared is a median as a multiple of the bare products of
the same run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .providers import FLOOR
from .record import KEY, Row, read

OURS = "rao_kernels"
SMALL = 4 << 20  # bytes below which a peak is not compared


@dataclass(frozen=True)
class Change:
    """One figure of a row of B beside A's. what: "time", "memory" or "status"."""

    row: Row
    what: str
    before: float | str
    after: float | str
    is_worse: bool

    def __str__(self) -> str:
        case = ", ".join(str(self.row[part]) for part in KEY)
        if isinstance(self.before, str) or isinstance(self.after, str):
            change = f"{self.before} -> {self.after}"
        else:
            change = f"{self.before:.3f} -> {self.after:.3f} ({self.after / self.before:.2f}x)"
        return f"{'WORSE' if self.is_worse else '  ok '} {self.what:<6} {change:<28} {case}"


def changes(before: Sequence[Row], after: Sequence[Row], threshold: float) -> Iterator[Change]:
    """Of every row that both have, in the order of `after`."""
    known = {_key(row): row for row in before}
    floors = [
        {_key(row)[:-1]: row for row in rows if row["provider"] == FLOOR}
        for rows in (before, after)
    ]
    for row in after:
        if (old := known.get(_key(row))) is not None:
            a, b = (floor.get(_key(row)[:-1], {}).get("median_s") for floor in floors)
            yield from _changes(old, row, a, b, threshold)


def _changes(
    old: Row, new: Row, old_floor: float | None, new_floor: float | None, threshold: float
) -> Iterator[Change]:
    if old["status"] != new["status"]:
        worse = old["status"] == "ok"
        yield Change(new, "status", old["status"], new["status"], worse)
        return
    if "median_s" in old and "median_s" in new and old_floor and new_floor:
        a, b = old["median_s"] / old_floor, new["median_s"] / new_floor
        yield Change(new, "time", a, b, b > threshold * a)
    if "peak_extra_bytes" in old and "peak_extra_bytes" in new:
        a, b = (max(row["peak_extra_bytes"], SMALL) for row in (old, new))
        yield Change(new, "memory", a / 2**20, b / 2**20, b > threshold * a)


def _key(row: Row) -> tuple[object, ...]:
    return (row["device"].split(",")[0], *(row[part] for part in KEY))


def compare(before: Path, after: Path, threshold: float, everyone: bool) -> int:
    """Prints the changes; 1 if one of ours is a regression, 2 if nothing can be compared."""
    found = list(changes(read(before), read(after), threshold))
    if not found:
        print(f"{before} and {after} have no row in common")
        return 2
    shown = [one for one in found if everyone or OURS in one.row["provider"]]
    for one in shown:
        print(one)
    worse = [one for one in shown if one.is_worse and OURS in one.row["provider"]]
    print(f"{len(worse)} of {len(shown)} figures are worse by more than {threshold:.2f}x")
    return 1 if worse else 0
