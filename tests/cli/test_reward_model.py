"""`rao-kernels reward-model`: from pairs to a model that `annotate` takes, and to records that
`train` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rao_kernels.cli.main import main
from tests.train.tiny import save_tiny, write_jsonl


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_tiny(tmp_path / "model", chat=True)
    rows: list[dict[str, Any]] = [
        {"prompt": f"ask {n}", "chosen": f"yes {'a' * (n % 5)}", "rejected": f"no {n}"}
        for n in range(24)
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flags(*more: str) -> list[str]:
    return [
        *("reward-model", "--model", "model", "--data", "pairs.jsonl", "--output_dir", "rm"),
        *("--use_cpu", "--disable_tqdm", "true", "--logging_steps", "1"),
        *("--learning_rate", "1e-2", *more),
    ]


def test_from_pairs_to_a_policy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags("--max_steps", "20", "--eval_fraction", "0.3")) == 0
    printed = capsys.readouterr().out
    report = json.loads((folder / "rm" / "reward_model.json").read_text())
    assert f"{report['pairs']} held-out pairs: accuracy {report['accuracy']:.1%}" in printed
    assert report["accuracy"] > 0.9
    assert (folder / "rm" / "reward_model.png").is_file()
    assert (folder / "rm" / "run.png").is_file()

    given = ["annotate", "--data", "pairs.jsonl", "--output", "scored.jsonl"]
    assert main([*given, "--reward_model", "rm", "--disable_tqdm", "true"]) == 0
    scored = [json.loads(line) for line in (folder / "scored.jsonl").open()]
    right = sum(row["score_chosen"] > row["score_rejected"] for row in scored)
    assert right > 0.9 * len(scored)
    assert f"chosen rewarded above rejected: {right / len(scored):.1%}" in capsys.readouterr().out

    given = ["train", "--model", "model", "--data", "scored.jsonl", "--output_dir", "policy"]
    assert main([*given, "--use_cpu", "--max_steps", "1", "--disable_tqdm", "true"]) == 0


def test_an_adapter_without_evaluation(folder: Path) -> None:
    pytest.importorskip("peft")
    assert main(flags("--lora_r", "2", "--max_steps", "2", "--eval_fraction", "0")) == 0
    assert (folder / "rm" / "adapter_model.safetensors").is_file()
    assert not (folder / "rm" / "reward_model.json").exists()


def test_it_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--save_steps", "1", "--resume_from_checkpoint", "auto")
    assert main(flags(*more, "--max_steps", "1")) == 0
    assert main(flags(*more, "--max_steps", "2")) == 0
    assert "resuming from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--margin", "rewards"), "no rewards, whose difference is the margin"),
        (("--center_rewards_coefficient", "-1"), "`center_rewards_coefficient`"),
        (("--model", "/nowhere/model"), "`model`"),
        (("--eval_fraction", "1e-9", "--eval_strategy", "epoch"), "`eval_fraction`"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], says: str
) -> None:
    assert main(flags("--max_steps", "1", *more)) == 2
    assert says in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (folder / "rm" / "metrics.jsonl").exists()
