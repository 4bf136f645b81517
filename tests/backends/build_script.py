"""Load setup.py as a module, so that tests compile with its commands."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_script", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SETUP = load()


def nvcc() -> str:
    """Return the CUDA compiler; without one skip the test, or fail it in CI."""
    try:
        return str(SETUP.find_nvcc())
    except SETUP.SkipBuild as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
