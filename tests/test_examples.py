"""Every example runs, and prints a finite loss."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if path.stem.startswith("trl_"):
        pytest.importorskip("trl")
    runpy.run_path(str(path))["main"]()
    found = re.search(r"loss\W+?(-?\d[\d.e-]*)", capsys.readouterr().out)
    assert found
    assert math.isfinite(float(found[1].rstrip(".")))
