"""Types of hyperparameters: equal to the table's, and enforced by a type checker."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from rao_kernels.losses import LOSSES, hyperparameters

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "rao_kernels" / "losses" / "hyperparameters.py"
SNIPPET = """\
from collections.abc import Mapping
from typing import Any
from rao_kernels.losses.hyperparameters import DPO, RAO, RLOO, VESPO, BCOPair, SimPO

def takes(hyper: Mapping[str, Any]) -> None: ...

simpo: SimPO = {"beta": 2, "gamma": 0.5}
takes(simpo)
takes(DPO(f_divergence="js", wpo="clamped"))
takes(RAO(log_z0="auto", prompt_term="none"))
takes(RLOO(on_policy=True, dual_clip=None))
takes(VESPO(k=(2.0, 3.0)))
takes(BCOPair(delta=0.1))
"""


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate_losses.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_module_is_in_step_with_the_table(generator: ModuleType) -> None:
    """If this fails, run docs/generate_losses.py."""
    assert MODULE.read_text(encoding="utf-8") == generator.hyperparameters_module(LOSSES.values())


def test_every_loss_has_its_own_type_with_its_hyperparameters(generator: ModuleType) -> None:
    assert get_args(hyperparameters.LossKey) == tuple(LOSSES)
    names = [generator.class_name(spec) for spec in LOSSES.values()]
    assert len(set(names)) == len(LOSSES)
    for name, spec in zip(names, LOSSES.values(), strict=True):
        found = getattr(hyperparameters, name)
        assert list(found.__annotations__) == list(spec.defaults)
        assert not found.__required_keys__
        for key, default in spec.defaults.items():
            assert f"{key}: " in found.__doc__ and f"{default}" in found.__doc__, (name, key)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("", ""),
        ('wrong: SimPO = {"betta": 2.0}', '"betta"'),
        ('wrong: SimPO = {"gamma": "0.5"}', '"gamma"'),
        ('wrong = RAO(prompt_term="detach")', '"prompt_term"'),
        ("wrong = DPO(tau=0.1)", '"tau"'),
    ],
)
def test_a_type_checker_knows_keys_and_types(line: str, key: str, tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    (tmp_path / "snippet.py").write_text(SNIPPET + line + "\n")
    options = ["--strict", "--follow-imports=skip", "--allow-any-unimported"]
    options += [f"--cache-dir={tmp_path / 'cache'}", "--config-file=", "--no-error-summary"]
    output, errors, status = api.run([*options, str(MODULE), str(tmp_path / "snippet.py")])
    assert errors == ""
    if line:
        assert status == 1 and output.count("error:") == 1 and key in output
        assert f"snippet.py:{SNIPPET.count(chr(10)) + 1}:" in output
    else:
        assert (output, status) == ("", 0)
