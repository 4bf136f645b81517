"""``bench compare A B``: find what is slower, larger or no longer right in B.

Medians are compared as multiples of the bare products of the same run, because machines differ from
day to day; results under different limits (`record.LIMITS`) are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .providers import BASELINE
from .record import KEY, Result, limits_of, read

OURS = "rao_kernels"
SMALL = 4 << 20  # bytes below which a peak is not compared


@dataclass(frozen=True)
class Change:
    """One figure of a result of B beside A's. what: "time", "memory" or "status"."""

    result: Result
    what: str
    before: float | str
    after: float | str
    is_worse: bool

    def __str__(self) -> str:
        case = ", ".join(str(self.result[part]) for part in KEY)
        if isinstance(self.before, str) or isinstance(self.after, str):
            change = f"{self.before} -> {self.after}"
        else:
            change = f"{self.before:.3f} -> {self.after:.3f} ({self.after / self.before:.2f}x)"
        return f"{'WORSE' if self.is_worse else '  ok '} {self.what:<6} {change:<28} {case}"


def changes(
    before: Sequence[Result], after: Sequence[Result], threshold: float
) -> Iterator[Change]:
    """Yield the changes of every result that both have, in the order of `after`."""
    known = {_key(result): result for result in before}
    baselines = [
        {_key(result)[:-1]: result for result in results if result["provider"] == BASELINE}
        for results in (before, after)
    ]
    for result in after:
        if (old := known.get(_key(result))) is not None:
            a, b = (baseline.get(_key(result)[:-1], {}).get("median_s") for baseline in baselines)
            yield from _changes(old, result, a, b, threshold)


def _changes(
    old: Result,
    new: Result,
    old_baseline: float | None,
    new_baseline: float | None,
    threshold: float,
) -> Iterator[Change]:
    if old["status"] != new["status"]:
        worse = old["status"] == "ok"
        yield Change(new, "status", old["status"], new["status"], worse)
        return
    if "median_s" in old and "median_s" in new and old_baseline and new_baseline:
        a, b = old["median_s"] / old_baseline, new["median_s"] / new_baseline
        yield Change(new, "time", a, b, b > threshold * a)
    if "peak_extra_bytes" in old and "peak_extra_bytes" in new:
        a, b = (max(result["peak_extra_bytes"], SMALL) for result in (old, new))
        yield Change(new, "memory", a / 2**20, b / 2**20, b > threshold * a)


def _key(result: Result) -> tuple[object, ...]:
    device = result["device"].split(",")[0]
    return (device, limits_of(result), *(result[part] for part in KEY))


def compare(before: Path, after: Path, threshold: float, everyone: bool) -> int:
    """Print the changes; return 1 if one of ours is a regression, 2 if nothing can be compared."""
    found = list(changes(read(before), read(after), threshold))
    if not found:
        print(f"{before} and {after} have no result in common")
        return 2
    shown = [one for one in found if everyone or OURS in one.result["provider"]]
    for one in shown:
        print(one)
    worse = [one for one in shown if one.is_worse and OURS in one.result["provider"]]
    print(f"{len(worse)} of {len(shown)} figures are worse by more than {threshold:.2f}x")
    return 1 if worse else 0
