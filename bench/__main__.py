"""``python -m bench``: the op against the bare GEMMs and plain torch, correctness first."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from . import cases, measure, providers, record

Row = dict[str, object]


def measured(case: cases.Case, rounds: int) -> list[Row]:
    """Rows of every provider on one case; a provider that is wrong is reported and not timed."""
    found = providers.default(case.hidden.dtype)
    errors = {p.name: measure.errors(p, case) for p in found if not p.is_floor}
    wrong = {n for n, e in errors.items() if not measure.is_right(e, errors["plain torch"])}
    rows: list[Row] = []
    for direction in ("forward", "both"):
        calls = {p.name: partial(getattr(p, direction), case) for p in found if p.name not in wrong}
        seconds = measure.interleaved(calls, rounds)
        floor = measure.spread(seconds["bare GEMMs"])["median_s"]
        for provider in found:
            row: Row = {
                "case": case.name,
                "dtype": str(case.hidden.dtype).removeprefix("torch."),
                "direction": direction,
                "provider": provider.name,
                "status": "wrong" if provider.name in wrong else "ok",
                **errors.get(provider.name, {}),
            }
            if provider.name not in wrong:
                times = measure.spread(seconds[provider.name])
                row |= {**times, "ratio_to_gemms": times["median_s"] / floor}
            if direction == "both" and not provider.is_floor:
                row["peak_extra_bytes"] = measure.peak_extra_bytes(partial(provider.both, case))
            rows.append(row)
    return rows


def show(rows: list[Row]) -> None:
    for row in rows:
        parts = [f"{row['case']:<32} {row['dtype']:<9} {row['direction']:<8} {row['provider']:<30}"]
        if "median_s" in row:
            parts.append(f"{row['median_s']:.3f} s  {row['ratio_to_gemms']:.2f} x GEMMs")
        if row["direction"] == "both" and "logp_error" in row:
            names = ("logp_error", "dhidden_error", "dweight_error")
            parts.append("errors " + " ".join(f"{row[name]:.1e}" for name in names))
            parts.append(f"{row['peak_extra_bytes'] / 2**20:.0f} MiB extra")
        if row["status"] != "ok":
            parts.append("WRONG, not timed")
        print("  ".join(parts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--cases", nargs="+", default=["probe", "random"])
    parser.add_argument("--dtypes", nargs="+", default=list(cases.DTYPES), choices=cases.DTYPES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="folder of the rows; default bench/results/cpu")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    for case in cases.chosen(arguments.cases, arguments.dtypes, arguments.shared):
        found = measured(case, arguments.rounds)
        show(found)
        rows += found
    print("rows:", record.write(rows, arguments.out))


if __name__ == "__main__":
    main()
