"""Ctrl-C: one line that says what is kept and how to go on, and exit code 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rao_kernels.cli import main as main_module
from rao_kernels.cli.main import main
from rao_kernels.train import RAOTrainer, checkpoints
from tests.train.tiny import save_tiny, tiny_rows, write_jsonl

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT interrupts, which it does not where a shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "model")
    write_jsonl(tmp_path / "data.jsonl", tiny_rows(20))
    return tmp_path


def flags(folder: Path, out: str, *more: str) -> list[str]:
    return [
        *("train", "--model", str(folder / "model"), "--data", str(folder / "data.jsonl")),
        *("--output_dir", str(folder / out), "--use_cpu", "--disable_tqdm", "true"),
        *("--learning_rate", "1e-3", "--lr_scheduler_type", "constant", "--logging_steps", "1"),
        *("--eval_fraction", "0", *more),
    ]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def interrupted(arguments: list[str], condition: Callable[[], bool]) -> tuple[int, str]:
    """Exit status and what is said on stderr of a run that gets SIGINT once `condition` holds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rao_kernels.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(condition, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, said


def test_a_checkpoint_is_saved_and_the_run_goes_on_from_it(folder: Path) -> None:
    out = folder / "out"
    metrics = out / "metrics.jsonl"
    status, said = interrupted(
        flags(folder, "out", "--max_steps", "100000"),
        lambda: metrics.exists() and '"step": 3' in metrics.read_text(),
    )
    assert status == 130
    assert "Traceback" not in said
    newest = checkpoints.newest_complete(out)
    assert newest is not None
    last = said.strip().splitlines()[-1]
    assert last.startswith("rao-kernels train: interrupted: at step ")
    assert last.endswith(f"; the same command goes on from {newest}")
    assert not (out / "model.safetensors").exists()
    steps = int(newest.name.split("-")[1])
    # Bit-equal to the run that nobody stopped.
    more = ("--max_steps", str(steps + 3))
    assert main(flags(folder, "out", *more)) == 0
    assert main(flags(folder, "straight", *more)) == 0
    straight = load_file(folder / "straight" / "model.safetensors")
    for name, weight in load_file(out / "model.safetensors").items():
        assert torch.equal(weight, straight[name]), name


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, presses: int) -> None:
    """Presses Ctrl-C inside a step."""
    once = RAOTrainer.training_step

    def pressed(self: RAOTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == step:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
        return once(self, *args, **kwargs)

    monkeypatch.setattr(RAOTrainer, "training_step", pressed)


@pytest.mark.parametrize(
    ("presses", "more", "kept"),
    [(1, (), "3"), (2, (), "2"), (1, ("--save_strategy", "no"), None)],
    ids=["once", "twice", "saving nothing"],
)
def test_second_press_and_runs_that_save_nothing(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    presses: int,
    more: tuple[str, ...],
    kept: str | None,
) -> None:
    stop_at(monkeypatch, 3, presses)
    assert main(flags(folder, "out", "--max_steps", "9", "--save_steps", "2", *more)) == 130
    newest = checkpoints.newest_complete(folder / "out")
    assert (newest and newest.name) == (kept and f"checkpoint-{kept}")
    last = capsys.readouterr().err.strip().splitlines()[-1]
    way_on = f"the same command goes on from {newest}" if kept else "the same command starts again"
    assert way_on in last
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    assert main(flags(folder, "out", "--max_steps", "9", "--save_steps", "2", *more)) == 0
    printed = capsys.readouterr().out
    assert ("resuming from" in printed) == (newest is not None)
    assert ("no complete checkpoint: new start" in printed) == (newest is None)
    assert (folder / "out" / "model.safetensors").is_file()


def test_before_training_and_in_other_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rao_kernels.cli.train.make_loss_trainer", press)
    assert main(flags(folder, "out")) == 130
    assert "before training began" in (said := capsys.readouterr().err)
    assert "the same command starts again" in said
    command = ModuleType("command")
    command.run = press  # type: ignore[attr-defined]
    monkeypatch.setattr(main_module.importlib, "import_module", lambda *_: command)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err.strip() == "rao-kernels doctor: interrupted"
