"""Result rows: JSON lines that carry the device, versions, commit and configuration."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from rao_kernels import _native

FOLDER = Path(__file__).parent / "results"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(FOLDER.parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def _isa() -> str:
    library = _native.cpu_library()
    return library.isa if isinstance(library, _native.CpuLibrary) else "no CPU library"


def surroundings() -> dict[str, object]:
    """What every row carries."""
    return {
        "device": f"{_cpu()}, {torch.get_num_threads()} threads",
        "isa": _isa(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "-s") else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def write(rows: list[dict[str, object]], folder: Path | None) -> Path:
    """Append the rows to ``<folder>/<date>-<commit>.jsonl``."""
    facts = surroundings()
    folder = folder or FOLDER / "cpu"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{facts['date']}-{facts['commit']}.jsonl"
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps({**facts, **row}) + "\n")
    return path
