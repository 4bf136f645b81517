"""Results: JSON lines that carry the device, versions, commit, environment and configuration."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__, _native
from .cases import LOSSES

Result = dict[str, Any]
ROOT = Path(__file__).parents[2]
# A checkout keeps its results; an installed wheel writes them where it is run.
IN_CHECKOUT = (ROOT / "bench" / "results").is_dir()
FOLDER = ROOT / "bench" / "results" if IN_CHECKOUT else Path("bench_results")
PACKAGES = (
    "triton",
    "trl",
    "transformers",
    "liger-kernel",
    "cut-cross-entropy",
    "quack-kernels",
)
COMMIT = "RAO_BENCH_COMMIT"
KEY = ("case", "dtype", "direction", "provider")
# Variables that limit the instruction sets of torch's products and sums, and so of all who call
# them, and their names in folders.
VENDOR_LIMITS = {
    "ONEDNN_MAX_CPU_ISA": "onednn",
    "ATEN_CPU_CAPABILITY": "aten",
    "MKL_ENABLE_INSTRUCTIONS": "mkl",
    "MKL_CBWR": "mkl-cbwr",
}
LIMITS = (*VENDOR_LIMITS, "RAO_KERNELS_CPU_ISA")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _commit() -> str:
    """Return the short hash, with "+" if files other than results have changed; of a wheel its
    version. The variable `COMMIT` names the commit of a copy without its repository."""
    if named := os.environ.get(COMMIT):
        return named
    if not IN_CHECKOUT or not _git("rev-parse", "--git-dir"):
        return f"v{__version__}"
    changed = _git("status", "-s", "--", ":/", ":(exclude,top)bench/results")
    return _git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def _isa() -> str:
    library = _native.cpu_library()
    return library.isa if isinstance(library, _native.CpuLibrary) else "no CPU library"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def limits() -> dict[str, str]:
    """Return the variables of `LIMITS` that are set."""
    return {name: os.environ[name] for name in LIMITS if os.environ.get(name)}


def limits_of(result: Result) -> str:
    """Return the limits a result was measured under, as a shell would set them; usually none."""
    return " ".join(f"{name}={value}" for name, value in result.get("limits", {}).items())


def surroundings(device: torch.device) -> Result:
    """Return the fields that all results of a run share: device, versions, commit, time, limits."""
    now = datetime.now(UTC)
    if device.type == "cuda":
        name, isa = torch.cuda.get_device_name(device), f"CUDA {torch.version.cuda}"
    else:
        name, isa = f"{_cpu()}, {torch.get_num_threads()} threads", _isa()
    return {
        "device": name,
        "isa": isa,
        "limits": limits(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rao_kernels": __version__,
        "packages": _versions(),
        "commit": _commit(),
        "date": now.strftime("%Y-%m-%d"),
        "time": now.strftime("%H:%M:%S"),
    }


def folder_of(device: torch.device) -> Path:
    """Return the folder of a machine's results, named after the GPU, or after the processor, the
    instruction set of our kernels, and the limits of torch's."""
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else f"{_cpu()} {_isa()}"
    asked = limits()
    name += "".join(
        f" {short} {asked[one]}" for one, short in VENDOR_LIMITS.items() if one in asked
    )
    return FOLDER / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def folders(suite: str) -> list[Path]:
    """Return the machines' folders that hold results of the suite, those under a limit last."""
    found = {path.parent for path in FOLDER.glob("*/*.jsonl")}
    having = [folder for folder in found if newest_of_each(folder, [suite])]
    return sorted(having, key=lambda one: (limits_of(read(newest(one, suite))[0]), one))


def write(results: Iterable[Result], folder: Path, facts: Mapping[str, Any]) -> Path:
    """Append the results to ``<folder>/<date>-<commit>.jsonl``; "+" is "-changed" there."""
    folder.mkdir(parents=True, exist_ok=True)
    commit = facts["commit"].replace("+", "-changed")
    path = folder / f"{facts['date']}-{commit}.jsonl"
    with path.open("a") as file:
        for result in results:
            file.write(json.dumps({**facts, **result}) + "\n")
    return path


def read(path: Path) -> list[Result]:
    """Return the results of a file, or of a folder's newest file; of two measurements of the same
    case, provider and limits the later one."""
    if path.is_dir():
        path = newest(path)
    found = {}
    for line in path.read_text().splitlines():
        result = json.loads(line)
        result["case"] = _current_name(result["case"])
        found[limits_of(result), *(result.get(part) for part in KEY)] = result
    return list(found.values())


def _current_name(case: str) -> str:
    """Return the name that a case has today; files before 2026-11-21 have others."""
    if case == "probe (SmolLM2-135M, real text)":
        return "real text, SmolLM2 135M"
    task, space, rest = case.partition(" ")
    return f"{LOSSES[task]}, {rest}" if space and task in LOSSES else case


def newest(folder: Path, suite: str | None = None) -> Path:
    """Return the file of the latest run by the dates in the files; with a suite, among those with
    results of it."""

    def written(path: Path) -> tuple[str, str]:
        last = json.loads(path.read_text().splitlines()[-1])
        return last["date"], last.get("time", "")

    def has_suite(path: Path) -> bool:
        results = map(json.loads, path.read_text().splitlines())
        return suite is None or any(result.get("suite", suite) == suite for result in results)

    return max(filter(has_suite, folder.glob("*.jsonl")), key=written)


def newest_of_each(folder: Path, suites: Iterable[str]) -> dict[str, Path]:
    """Return the file of the latest run of each of the suites that was ever run."""
    lines = (line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines())
    ran = {json.loads(line).get("suite") for line in lines}
    return {suite: newest(folder, suite) for suite in suites if suite in ran}
