"""The installed package, and the files of the repository that must agree with each other."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import rao_kernels
from rao_kernels import _env

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def environment_page() -> str:
    """ENVIRONMENT.md, from the table of the only reader of environment variables."""
    rows = "".join(f"| `{name}` | {text} |\n" for name, text in _env.VARIABLES.items())
    return (
        "# Environment variables\n\n"
        "Written by `python tests/test_packaging.py` from `rao_kernels/_env.py`.\n\n"
        f"| variable | meaning |\n|---|---|\n{rows}"
    )


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {_normal(name): version for name, version in pairs}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirement_names(requirements: list[str]) -> set[str]:
    return {_normal(re.match(r"[\w.-]+", one)[0]) for one in requirements} - {"rao-kernels"}


def test_environment_page_is_in_step() -> None:
    assert (ROOT / "ENVIRONMENT.md").read_text() == environment_page()


def test_core_needs_torch_alone() -> None:
    assert _requirement_names(PROJECT["dependencies"]) == {"torch"}


def test_every_requirement_is_pinned() -> None:
    pins = _pins()
    for extra, requirements in PROJECT["optional-dependencies"].items():
        assert _requirement_names(requirements) <= set(pins), extra
    assert next(iter(pins)) == "torch"


def test_pre_commit_runs_the_pinned_versions() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    pins = _pins()
    found = re.findall(r"# (\S+)\n\s+rev: v(\S+)", text)
    assert {name for name, _ in found} == {"ruff", "clang-format", "mypy"}
    for name, version in found:
        assert pins[name] == version


def test_version_is_written_once() -> None:
    text = (ROOT / "rao_kernels" / "__init__.py").read_text()
    assert f'__version__ = "{rao_kernels.__version__}"' in text
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {rao_kernels.__version__}" in changelog
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {rao_kernels.__version__}\n" in citation


def test_installed_metadata() -> None:
    try:
        found = metadata.metadata("rao-kernels")
    except metadata.PackageNotFoundError:
        pytest.skip("rao-kernels is not installed, only on the path")
    assert found["Version"] == rao_kernels.__version__
    assert found["License-Expression"] == "Apache-2.0"


def test_typed() -> None:
    assert (ROOT / "rao_kernels" / "py.typed").exists()


def test_command_line_entry_point() -> None:
    assert PROJECT["scripts"] == {"rao-kernels": "rao_kernels.cli.main:main"}
    result = subprocess.run(
        [sys.executable, "-m", "rao_kernels.cli", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0
    assert {"train", "demo", "doctor", "losses"} <= set(result.stdout.split())


def test_make_targets_and_ci_agree_with_the_readme() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for command in ("make demo", "make test", "pip install --no-build-isolation ."):
        assert command in readme
    assert "make test" in ci


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_pinned_and_may_only_read(path: Path) -> None:
    """More permissions are a job's own; a step is a command or an action of a named version."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert "concurrency" in workflow
    for job in workflow["jobs"].values():
        assert "timeout-minutes" in job
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert re.search(r"@(release/)?v\d+$", step.get("uses", "@v1")), step


def test_ci_runs_what_contributors_run() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    commands = {
        step["run"].strip() for job in jobs.values() for step in job["steps"] if "run" in step
    }
    assert {".ci/run", "make lint", "make docs"} <= commands
    versions = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if " :: 3." in name}
    assert set(jobs["test"]["strategy"]["matrix"]["python"]) == {min(versions), max(versions)}


def test_wheels_run_with_the_oldest_torch() -> None:
    """Compiled against the pinned torch, loaded by the oldest that is supported."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    (oldest,) = (one.partition(">=")[2] for one in PROJECT["dependencies"])
    assert settings["test-requires"] == f"torch=={oldest}.0"
    assert "constraints.txt torch" in settings["before-build"]
    assert (ROOT / settings["test-command"].rpartition("{project}/")[2]).exists()


def test_links_name_one_repository() -> None:
    home = PROJECT["urls"]["Homepage"]
    pages = [ROOT / "SECURITY.md", ROOT / "CITATION.cff", *(ROOT / ".github").rglob("*.yml")]
    found = {
        link
        for page in pages
        for link in re.findall(r"https://github\.com/[\w-]+/[\w-]+", page.read_text())
    }
    assert found == {home}


def calls_and_imports(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module), node
        elif isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_that_is_read_can_run_code() -> None:
    """SECURITY.md: weights alone are unpickled, and no code of a model repository runs."""
    files = [*(ROOT / "rao_kernels").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    loads = 0
    for file in files:
        text = file.read_text()
        assert "trust_remote_code" not in text, file
        for name, node in calls_and_imports(ast.parse(text)):
            assert name.partition(".")[0] not in ("pickle", "dill", "joblib", "marshal"), file
            if name in ("torch.load", "load") and isinstance(node, ast.Call):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", (file, node.lineno)
                loads += 1
    assert loads > 0


def test_readme_and_page_show_the_demos_figures() -> None:
    found = json.loads((ROOT / "docs" / "demo.json").read_text())
    page = (ROOT / "docs" / "demo.md").read_text()
    rewards = [
        f"{found['rewards'][name]['mean']:.3f} ± {found['rewards'][name]['standard_error']:.3f}"
        for name in ("before", "RAO", "DPO")
    ]
    rows = [" | ".join(rewards)]
    for metric in ("logps/chosen", "logps/rejected"):
        curves = [found["runs"][name]["held_out_pairs"][metric][1] for name in ("RAO", "DPO")]
        rows.append(
            " | ".join(f"{one:.1f}" for one in (curves[0][0], curves[0][-1], curves[1][-1]))
        )
    rows.append(" | ".join(f"{found['runs'][name]['seconds']:.0f}" for name in ("RAO", "DPO")))
    rows += [
        f"{cost['seconds'] * 1e3:.0f} ms and {cost['peak_bytes'] / 2**20:.0f} MiB"
        for cost in (found["loss_cost"]["rao_kernels"], found["loss_cost"]["plain torch"])
    ]
    assert [row for row in rows if row not in page] == []
    assert rows[0] in (ROOT / "README.md").read_text()


if __name__ == "__main__":
    (ROOT / "ENVIRONMENT.md").write_text(environment_page())
