"""Contents of the source distribution, and of the wheel that is built from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from rao_kernels import _native

from .backends.build_script import SETUP

ROOT = Path(__file__).parents[1]
LIBRARIES = {"RAO_BUILD_CPU": "0", "RAO_BUILD_CUDA": "0"}  # Python files alone, in seconds
NOT_BUILT_FROM = (".git", ".venv", "build", "dist", "shared", "*.egg-info", "*.so", "__pycache__")


def build(what: str, source: Path, target: Path) -> Path:
    """Build the "sdist" or the "wheel" of a source tree, as pip does without isolation."""
    code = f"import setuptools.build_meta as b; b.build_{what}({str(target)!r})"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env={**os.environ, **LIBRARIES},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    (found,) = target.iterdir()
    return found


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*NOT_BUILT_FROM))
    (folder / "dist").mkdir()
    with tarfile.open(build("sdist", folder / "tree", folder / "dist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (found,) = (folder / "unpacked").iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(unpacked_sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", unpacked_sdist, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path, names: set[str]) -> Message:
    (name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(zipfile.ZipFile(wheel).read(name).decode())


def package_files(pattern: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / "rao_kernels").rglob(pattern)}


def test_sdist_has_all_that_is_compiled(unpacked_sdist: Path) -> None:
    for folder in ("csrc", "python_bindings"):
        sources = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert sources
        assert {path for path in sources if not (unpacked_sdist / path).is_file()} == set()
    assert not list(unpacked_sdist.rglob("*.so"))


def test_one_wheel_serves_every_python(wheel: Path) -> None:
    _, _, *tags = wheel.stem.split("-")
    assert tags[:2] == ["py3", "none"]
    assert tags[2].startswith(("linux_", "macosx_"))


def test_wheel_has_the_package_whole(names: set[str]) -> None:
    wanted = package_files("*.py") | package_files("*.json") | {"rao_kernels/py.typed"}
    assert wanted - names == set()


def test_wheel_has_nothing_else(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rao_kernels"}
    endings = {Path(name).suffix for name in names if name.startswith("rao_kernels/")}
    assert endings == {".py", ".json", ".typed"}
    assert [name for name in names if Path(name).name.startswith("test_")] == []


def test_metadata_leads_to_the_project(metadata: Message) -> None:
    urls = dict(one.split(", ", 1) for one in metadata.get_all("Project-URL", []))
    assert set(urls) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert all(url.startswith(urls["Homepage"]) for url in urls.values())
    assert metadata["License-Expression"] == "Apache-2.0"


@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm")
def test_library_needs_no_python_and_no_unstable_torch() -> None:
    """Else one file would not serve every Python, and every torch from 2.10 on."""
    library = _native.cpu_library()
    if isinstance(library, _native.Missing):
        pytest.skip(library.reason)
    symbols = SETUP.run(["nm", "-D", "--undefined-only", "--demangle", str(library.path)])
    wanted = [line.split(maxsplit=1)[1] for line in symbols.splitlines()]
    foreign = ("Py", "_Py", "at::", "c10::", "torch::", "GOMP_", "omp_")
    assert [name for name in wanted if name.startswith(foreign)] == []
    assert any(name.startswith("aoti_torch_") for name in wanted)


def test_installed_package_passes_the_check_of_wheels() -> None:
    """The check that wheels.yml runs on each wheel, here on the checkout."""
    library = _native.cpu_library()
    if isinstance(library, _native.Missing):
        pytest.skip(library.reason)
    result = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "check_wheel.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "dweight: relative error" in result.stdout
