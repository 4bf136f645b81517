"""The commands that need no model."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from rao_kernels import _native, errors
from rao_kernels.cli import doctor, losses
from rao_kernels.cli import main as main_module
from rao_kernels.cli.main import _ERRORS, COMMANDS, main

CLI = Path(doctor.__file__).parent


def test_usage_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
    assert main([]) == 2
    assert main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_usage_has_the_stages_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = re.findall(r"^  ([a-z-]+)  ", capsys.readouterr().out, re.M)
    assert shown == list(COMMANDS)
    assert shown[:3] == ["sft", "reward-model", "generate"]


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if (CLI / f"{name.replace('-', '_')}.py").exists()]
)
def test_every_command_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: rao-kernels {name}")


def test_a_missing_package_is_named_with_its_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel alone brings torch, and not what `train` needs."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "rao_kernels.cli.train", raising=False)
    assert main(["train"]) == 2
    message = capsys.readouterr().err
    assert "transformers" in message
    assert "pip install 'rao-kernels[train]'" in message
    monkeypatch.setattr(main_module, "COMMANDS", {"a-b": ""})
    monkeypatch.setattr(main_module.importlib, "import_module", _import_transformers)
    assert main(["a-b"]) == 2
    assert "pip install 'rao-kernels[train]'" in capsys.readouterr().err


def _import_transformers(name: str, package: str) -> NoReturn:
    assert name == ".a_b"
    raise ModuleNotFoundError(name="transformers.models")


def test_output_that_nobody_reads_ends_a_command_quietly() -> None:
    """As behind ``| head``."""
    command = [sys.executable, "-m", "rao_kernels.cli", "losses"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_broken_pipe_of_another_kind_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: Sequence[str]) -> None:
        raise BrokenPipeError("a worker of the data loader")

    monkeypatch.setattr(doctor, "run", fail)
    with open(os.devnull, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(BrokenPipeError, match="worker"):
            main(["doctor"])


def test_every_error_of_the_package_becomes_one_line() -> None:
    raised = [one for one in vars(errors).values() if isinstance(one, type)]
    assert {one for one in raised if not issubclass(one, Warning)} == set(_ERRORS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rao-kernels {importlib.metadata.version('rao-kernels')}\n"


def test_doctor_lists_what_the_package_is_used_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for package in ("trl", "peft", "deepspeed", "liger-kernel", "cut-cross-entropy"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        assert f"{package} {version}" in lines


def test_doctor_names_backends_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "torch " in printed
    assert "cpu float64: runs eager" in printed
    assert "    not cpu: " in printed


def test_doctor_needs_no_transformers() -> None:
    """It must run where the trainer's packages are missing."""
    code = "import sys; sys.modules['transformers'] = None; from rao_kernels.cli.main import main; "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit(main(['doctor']))"], check=False)
    assert done.returncode == 0


def test_doctor_says_what_is_built() -> None:
    library = _native.cpu_library()
    line = next(line for line in doctor.report() if line.startswith("CPU library: "))
    if isinstance(library, _native.CpuLibrary):
        assert library.isa in line and library.compiler in line
        assert ("no avx512_amx" in line) == ("avx512_amx" not in library.host_isas)
        assert (library.amx_problem or "") in line
    else:
        assert library.reason in line


def test_warnings_are_lines_of_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the line of source that Python shows, which users did not write."""
    before = warnings.formatwarning

    def warn(_: Sequence[str]) -> None:
        print(warnings.formatwarning("far off", UserWarning, "trainer.py", 7), end="")

    monkeypatch.setattr(losses, "run", warn)
    assert main(["losses"]) == 0
    assert capsys.readouterr().out == "rao-kernels losses: warning: far off\n"
    assert warnings.formatwarning is before
