"""Result rows: JSON lines that carry the device, versions, commit and configuration."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import rao_kernels
from rao_kernels import _native

Row = dict[str, Any]
HERE = Path(__file__).parent
# Committed rows lie beside the suite; a suite that came with a wheel writes where it is run.
IN_CHECKOUT = (HERE / "results").is_dir()
FOLDER = HERE / "results" if IN_CHECKOUT else Path("bench_results")
PACKAGES = (
    "triton",
    "trl",
    "transformers",
    "liger-kernel",
    "cut-cross-entropy",
    "quack-kernels",
)
KEY = ("case", "dtype", "direction", "provider")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(HERE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _commit() -> str:
    """Short hash, "+" behind it where the tree differs; result rows are no difference. Of a wheel
    its version."""
    if not IN_CHECKOUT:
        return f"v{rao_kernels.__version__}"
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


def surroundings(device: torch.device) -> Row:
    """What every row of a run carries."""
    now = datetime.now(UTC)
    if device.type == "cuda":
        name, isa = torch.cuda.get_device_name(device), f"CUDA {torch.version.cuda}"
    else:
        name, isa = f"{_cpu()}, {torch.get_num_threads()} threads", _isa()
    return {
        "device": name,
        "isa": isa,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rao_kernels": rao_kernels.__version__,
        "packages": _versions(),
        "commit": _commit(),
        "date": now.strftime("%Y-%m-%d"),
        "time": now.strftime("%H:%M:%S"),
    }


def folder_of(device: torch.device) -> Path:
    """Where a machine's rows lie: named after the GPU, or the processor and the instruction set."""
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else f"{_cpu()} {_isa()}"
    return FOLDER / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def folders(suite: str) -> list[Path]:
    """The machines' folders that hold rows of the suite."""
    found = sorted({path.parent for path in FOLDER.glob("*/*.jsonl")})
    return [folder for folder in found if newest_of_each(folder, [suite])]


def write(rows: Iterable[Row], folder: Path, facts: Mapping[str, Any]) -> Path:
    """Append the rows to ``<folder>/<date>-<commit>.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{facts['date']}-{facts['commit']}.jsonl"
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps({**facts, **row}) + "\n")
    return path


def read(path: Path) -> list[Row]:
    """The rows of a file, or of the newest file of a folder; of two of the same thing the later."""
    if path.is_dir():
        path = newest(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return list({tuple(row.get(part) for part in KEY): row for row in rows}.values())


def newest(folder: Path, suite: str | None = None) -> Path:
    """The file of the latest run, by what its rows say; with a suite, of those that ran it."""

    def written(path: Path) -> tuple[str, str]:
        last = json.loads(path.read_text().splitlines()[-1])
        return last["date"], last.get("time", "")

    def has_suite(path: Path) -> bool:
        rows = map(json.loads, path.read_text().splitlines())
        return suite is None or any(row.get("suite", suite) == suite for row in rows)

    return max(filter(has_suite, folder.glob("*.jsonl")), key=written)


def newest_of_each(folder: Path, suites: Iterable[str]) -> dict[str, Path]:
    """For each of the suites that was ever run, the file of its latest run."""
    lines = (line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines())
    ran = {json.loads(line).get("suite") for line in lines}
    return {suite: newest(folder, suite) for suite in suites if suite in ran}
