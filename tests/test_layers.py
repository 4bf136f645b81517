"""Imports go downwards: the table in CONTRIBUTING.md, checked against the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rao_kernels"


@dataclass(frozen=True)
class Layer:
    """What a part of the package may import; third is None where anything is allowed."""

    package: frozenset[str]
    third: frozenset[str] | None


@dataclass(frozen=True)
class Import:
    """One imported module. part: part of the package it is in, "" for another package.
    path: dotted name, within the package or of the other package."""

    line: int
    part: str
    path: str


def read_table() -> dict[str, Layer]:
    """The rows of the table, by part."""
    layers: dict[str, Layer] = {}
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for cells in re.findall(r"^\| (`.*?) \| (.*?) ?\| (.*?) ?\|$", text, re.MULTILINE):
        parts, package, third = (re.findall(r"`(\w+)`", cell) for cell in cells)
        allowed = None if cells[2] == "any" else frozenset(third)
        layers |= dict.fromkeys(parts, Layer(frozenset(package), allowed))
    return layers


LAYERS = read_table()
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: Path) -> str:
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(module: Path, source: str) -> Iterator[Import]:
    """Every import of a module, wherever in it."""
    folder = module.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, "", alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield Import(node.lineno, "", str(node.module))
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1]
            base += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                # "from . import x" names a module, "from .x import y" a name in one.
                path = base if node.module else (*base, alias.name)
                yield Import(node.lineno, _owner(path[0]), ".".join(path))


def _owner(name: str) -> str:
    """The part of that name; a name of the package itself is `__init__`'s."""
    exists = (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
    return name if exists else "__init__"


def violations(module: Path, source: str) -> list[str]:
    """What a module imports and may not."""
    part = part_of(module)
    layer, found = LAYERS[part], []
    for one in imports_of(module, source):
        top = one.path.partition(".")[0]
        if one.part:
            wrong = one.part != part and one.part not in layer.package
        elif top == "rao_kernels":
            wrong = True
        else:
            foreign = top not in sys.stdlib_module_names
            wrong = foreign and layer.third is not None and top not in layer.third
        if wrong:
            found.append(f"{module.relative_to(ROOT)}:{one.line} imports {one.path}")
    return found


def test_table_names_every_part_once_and_only_those() -> None:
    parts = {part_of(module) for module in MODULES}
    assert parts == set(LAYERS)
    assert all(layer.package <= parts for layer in LAYERS.values())


def test_table_has_no_cycle() -> None:
    """A row names only parts that stand above it."""
    above: set[str] = set()
    for part, layer in LAYERS.items():
        assert layer.package <= above, part
        above.add(part)


@pytest.mark.parametrize("part", LAYERS)
def test_table_grants_nothing_unused(part: str) -> None:
    modules = [module for module in MODULES if part_of(module) == part]
    imported = {one.part for module in modules for one in imports_of(module, module.read_text())}
    assert LAYERS[part].package <= imported


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(module: Path) -> None:
    assert violations(module, module.read_text()) == []


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("losses/x.py", "from ..ops import linear_logprobs"),
        ("losses/x.py", "def f():\n    from .. import engine"),
        ("ops/x.py", "from ..engine.forward import a\nimport triton"),
        ("engine/x.py", "import rao_kernels.backends"),
        ("fused.py", "from . import train"),
        ("hf/x.py", "from ..train.config import RAOConfig"),
        ("train/x.py", "from ..cli import main"),
        ("train/x.py", "from .. import rao_loss"),
    ],
)
def test_a_violation_is_found(where: str, source: str) -> None:
    assert len(violations(PACKAGE / where, source)) == 1


def _is_shared(part: str, name: str) -> bool:
    if part == "backends":
        return name in ("tiles", "products", "gemm")
    return name in ("hyperparameters", "modifiers") or name.startswith("_")


@pytest.mark.parametrize("part", ["backends", "losses"])
def test_siblings_do_not_import_one_another(part: str) -> None:
    for module in sorted((PACKAGE / part).rglob("*.py")):
        own = module.relative_to(PACKAGE / part).with_suffix("").parts[0]
        if own == "__init__":
            continue
        for one in imports_of(module, module.read_text()):
            if one.part == part and (sibling := one.path.split(".")[1]) != own:
                assert _is_shared(part, sibling), f"{module.name}:{one.line} imports {sibling}"


def test_only_its_backend_imports_triton() -> None:
    for module in MODULES:
        if not module.is_relative_to(PACKAGE / "backends" / "triton"):
            imports = imports_of(module, module.read_text())
            assert all(one.part or one.path.partition(".")[0] != "triton" for one in imports)


def _includes(folder: str) -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / folder).rglob("*")):
        if path.suffix in {".h", ".cpp", ".cu", ".cuh"}:
            for header in re.findall(r'^\s*#\s*include\s*[<"](.*?)[>"]', path.read_text(), re.M):
                yield str(path.relative_to(ROOT)), header


def test_kernels_include_neither_torch_nor_python() -> None:
    found = list(_includes("csrc"))
    assert found
    foreign = re.compile(r"torch|ATen|c10|Python\.h|pybind11|caffe2")
    assert [one for one in found if foreign.match(one[1])] == []


def test_bindings_use_stable_headers_only() -> None:
    found = list(_includes("python_bindings"))
    assert any(header.startswith("torch/csrc/stable/") for _, header in found)
    banned = re.compile(
        r"ATen|c10|Python\.h|pybind11|caffe2|torch/(?!csrc/stable/|csrc/inductor/aoti_torch/c/|"
        r"headeronly/)"
    )
    assert [one for one in found if banned.match(one[1])] == []


def test_only_env_reads_environment_variables() -> None:
    """But for the commands, which show, set and record variables."""
    for module in MODULES:
        if part_of(module) in ("_env", "bench", "cli"):
            continue
        read = re.search(r"os\.(environ|getenv)", module.read_text())
        assert read is None, f"{module.relative_to(ROOT)} reads the environment"


def test_import_is_light() -> None:
    code = (
        "import sys, rao_kernels; "
        "sys.exit(str([m for m in ('triton', 'transformers', 'matplotlib') if m in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stderr.strip() == "[]"
