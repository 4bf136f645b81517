"""`--dry_run`: what would be trained, with the numbers that training then has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from rao_kernels.cli import training
from rao_kernels.cli.main import main
from rao_kernels.train.base import RunTrainer
from tests.train.tiny import save_tiny, tiny_rows, write_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "model")
    save_tiny(tmp_path / "other", seed=1)
    write_jsonl(tmp_path / "data.jsonl", tiny_rows(20))
    return tmp_path


def flags(folder: Path, command: str, *more: str) -> list[str]:
    return [
        *(command, "--model", str(folder / "model"), "--data", str(folder / "data.jsonl")),
        *("--output_dir", str(folder / "out"), "--use_cpu", "--disable_tqdm", "true"),
        *("--eval_fraction", "0.3", "--report_to", "none", "--num_train_epochs", "3", *more),
    ]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "more",
    [
        ("train",),
        ("train", "--lora_r", "2", "--bf16"),
        ("train", "--loss", "dpo", "--gradient_checkpointing"),
        ("sft",),
    ],
    ids=" ".join,
)
def test_tells_what_is_then_trained(
    folder: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    before = contents(folder)
    assert main([*flags(folder, *more), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert contents(folder) == before
    assert not (folder / "out").exists()
    assert main(flags(folder, *more, "--logging_steps", "1")) == 0
    printed = capsys.readouterr().out
    (steps,) = re.findall(r"^steps: (\d+)", said, re.M)
    assert (folder / "out" / f"checkpoint-{steps}").is_dir()
    assert re.findall(r"log_z0 fitted .*", said) == re.findall(r"log_z0 fitted .*", printed)
    (evaluations,) = re.findall(r"^evaluations: (\d+)", said, re.M)
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    assert int(evaluations) == sum('"eval_loss"' in line for line in lines)


def test_records_are_shown_as_the_model_reads_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "ask", "responses": ["yes", "no."], "rewards": [1, 0.5]}] * 4
    write_jsonl(folder / "data.jsonl", rows)
    assert main([*flags(folder, "train", "--eval_fraction", "0"), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert said.count("data.jsonl:") == 2
    assert '  prompt, 4 tokens: "<s> a s k"' in said
    assert '  response 1, 4 tokens, reward 1: "y e s </s>"' in said
    assert '  response 2, 4 tokens, reward 0.5: "n o . </s>"' in said
    assert "training data: 4 prompts, 64 tokens" in said


@pytest.mark.parametrize(
    ("more", "optimizer", "gradients"),
    [((), 2.0, 1.0), (("--optim", "sgd"), 0.0, 1.0), (("--lora_r", "2"), 2.0, None)],
    ids=["adamw", "sgd", "lora"],
)
def test_memory_by_formula(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    optimizer: float,
    gradients: float | None,
) -> None:
    from rao_kernels.cli import dry_run, memory

    found: list[tuple[RunTrainer, dict[str, int | None]]] = []

    def noted(trainer: RunTrainer, *given: object) -> dict[str, int | None]:
        found.append((trainer, memory.estimate(trainer, *given)))  # type: ignore[arg-type]
        return found[0][1]

    monkeypatch.setattr(dry_run, "estimate", noted)
    given = (*more, "--ref_model", str(folder / "other"))
    assert main([*flags(folder, "train", *given), "--dry_run"]) == 0
    ((trainer, parts),) = found
    assert trainer.model is not None
    weights = sum(p.numel() for p in trainer.model.parameters()) * 4
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad) * 4
    sizes = [size for size in parts.values() if size is not None]
    # The reference is a second model.
    assert weights < sizes[0] <= 2 * weights
    assert sizes[1] == trained
    assert gradients is None or trained == weights
    assert sizes[2] == optimizer * trained
    assert sizes[3] > 0


def test_weights_stay_and_the_reference_scores_only_what_is_tried(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rao_kernels.train import prepare

    scored: list[int] = []
    score = prepare.score_batch

    def counted(model: object, tensors: dict[str, torch.Tensor], **given: object) -> object:
        scored.append(len(tensors["input_ids"]))
        return score(model, tensors, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare, "score_batch", counted)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    report = training.report

    def watched(trainer: RunTrainer) -> object:
        weight = next(trainer.model.parameters())  # type: ignore[union-attr]
        start = weight.detach().clone()
        yield from report(trainer)
        seen.append((start, weight))
        assert weight.grad is None

    monkeypatch.setattr(training, "report", watched)
    write_jsonl(folder / "data.jsonl", tiny_rows(60))
    assert main([*flags(folder, "train"), "--dry_run"]) == 0
    assert torch.equal(*seen[0])
    # Three micro-batches of four prompts with at most three responses, of 60 prompts.
    assert 0 < sum(scored) <= 36


def test_a_used_folder_is_refused_as_in_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(folder, "train", "--max_steps", "1")) == 0
    assert main([*flags(folder, "train", "--beta", "0.3", "--loss", "dpo"), "--dry_run"]) == 2
    assert 'loss is "sigmoid", was "rao"' in capsys.readouterr().err
