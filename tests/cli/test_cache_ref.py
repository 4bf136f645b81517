"""`rao-kernels cache-ref`: `train --ref_cache require` then needs no reference pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from rao_kernels.cli.main import main
from rao_kernels.train import prepare
from tests.train.ranks import run_two_ranks
from tests.train.tiny import save_tiny, tiny_rows, write_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "model")
    save_tiny(tmp_path / "other", seed=1)
    write_jsonl(tmp_path / "data.jsonl", tiny_rows(20))
    return tmp_path


def flags(folder: Path, *more: str) -> list[str]:
    return [
        *("--model", str(folder / "model"), "--data", str(folder / "data.jsonl")),
        *("--ref_cache_dir", str(folder / "cache"), "--use_cpu", "--disable_tqdm", "true"),
        *("--eval_fraction", "0.3", "--report_to", "none", *more),
    ]


def shards(folder: Path) -> dict[Path, int]:
    found = (folder / "cache").glob("ref-*/*.safetensors")
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.mark.parametrize(
    "more", [(), ("--lora_r", "2"), ("--loss", "dpo"), ("--ref_model", "other")], ids=str
)
def test_train_needs_no_reference_pass(
    folder: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    more = tuple(str(folder / one) if one == "other" else one for one in more)
    monkeypatch.chdir(folder)
    assert main(["cache-ref", *flags(folder, *more)]) == 0
    assert shards(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("cache", "data.jsonl", "model", "other")
    ]
    monkeypatch.setattr(prepare, "score_batch", lambda *_, **__: pytest.fail("scored again"))
    trained = ("--ref_cache", "require", "--output_dir", str(folder / "out"), "--max_steps", "1")
    assert main(["train", *flags(folder, *more, *trained)]) == 0


def test_goes_on_where_it_stopped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache-ref", *flags(folder)]) == 0
    before = shards(folder)
    assert f"20 prompts are in {folder / 'cache'}: {len(before)} files" in capsys.readouterr().out
    lost = next(iter(before))
    lost.unlink()
    assert main(["cache-ref", *flags(folder)]) == 0
    assert ": 1 files written" in capsys.readouterr().out
    assert {path for path, time in shards(folder).items() if before[path] != time} == {lost}
    assert main(["cache-ref", *flags(folder)]) == 0
    assert ": 0 files written" in capsys.readouterr().out


def test_what_cannot_work_is_said_before_the_model_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache-ref", *flags(folder, "--loss", "sft", "--model", "/nope")]) == 2
    assert "`loss`: expected a loss that reads a reference, got 'sft'" in capsys.readouterr().err
    none = [one for one in flags(folder) if one not in ("--ref_cache_dir", str(folder / "cache"))]
    assert main(["cache-ref", *none]) == 2
    assert "`ref_cache_dir`" in capsys.readouterr().err


def test_processes_share_the_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_two_ranks("rao_kernels.cli", "cache-ref", *flags(folder))
    assert printed.count("files written") == 1
    assert main(["cache-ref", *flags(folder)]) == 0
    assert ": 0 files written" in capsys.readouterr().out
