"""`--dry_run`: what would be trained, with the numbers that training then has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rao_kernels.cli import dry_run as dry_runs
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
        ("train", "--packing"),
        ("sft",),
        ("reward-model",),
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


RULE = """
def letters(prompts, completions, **columns):
    return [completion.count("a") / 6 for completion in completions]
"""


@pytest.mark.parametrize(
    "more",
    [("--loss", "grpo"), ("--loss", "rao", "--refresh_reference_every", "2"), ("--loss", "dpo")],
    ids=" ".join,
)
def test_online_samples_what_the_first_round_samples(
    folder: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    (folder / "rule.py").write_text(RULE)
    rows: list[dict[str, object]] = [{"prompt": f"say {one}"} for one in "bcdefghi"]
    data = str(write_jsonl(folder / "prompts.jsonl", rows))
    arguments = [
        *("online", "--model", str(folder / "model"), "--data", data, "--eval_data", data),
        *("--rule", f"{folder / 'rule.py'}:letters", "--max_new_tokens", "6", "--rounds", "3"),
        *("--eval_strategy", "epoch", "--output_dir", str(folder / "out"), "--use_cpu"),
        *("--prompts_per_round", "8", "--report_to", "none", "--disable_tqdm", "true", *more),
    ]
    before = contents(folder)
    assert main([*arguments, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert contents(folder) == before
    assert not (folder / "out").exists()
    assert "rounds: 3 of 8 prompts, 8 responses of at most 6 tokens to each" in said
    assert "sampled 8 responses to each of 8 prompts" in said
    for part in ("sampling, with rewards and log-probs", "training", "in all", "memory", "peak"):
        assert re.search(rf"^{part}", said, re.M), part
    assert main(arguments) == 0
    entries = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    assert re.findall(r"^evaluations: (\d+)", said, re.M) == [
        str(sum('"eval_reward/mean"' in line for line in entries))
    ]
    (steps,) = re.findall(r"^steps: (\d+), 2 per round", said, re.M)
    assert (folder / "out" / f"checkpoint-{steps}").is_dir()
    lines = (folder / "out" / "rollouts" / "round-00000.jsonl").read_text().splitlines()
    lengths = {len(ids) for line in lines for ids in json.loads(line)["response_ids"]}
    shown = re.findall(r"response \d+, (\d+) tokens, reward ([\d.]+)", said)
    assert len(shown) == (4 if "dpo" in more else 16)
    assert {int(length) for length, _ in shown} <= lengths
    if "dpo" not in more:
        sampled = [f"{r:g}" for line in lines[:2] for r in json.loads(line)["rewards"]]
        assert [reward for _, reward in shown] == sampled


def test_pairs_are_shown_with_their_margin(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "ask", "responses": ["no.", "yes"], "rewards": [0.5, 1]},
        {"prompt": "ask", "responses": ["yes", "a"], "rewards": [0.75, 0.5]},
    ]
    write_jsonl(folder / "data.jsonl", rows)
    given = ("--eval_fraction", "0", "--margin", "rewards", "--center_rewards_coefficient", "0.01")
    assert main([*flags(folder, "reward-model", *given), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert '  response 1, 4 tokens, margin 0.5, preferred: "yes</s>"' in said
    assert '  response 2, 4 tokens, not preferred: "no.</s>"' in said
    assert "training data: 2 pairs, 30 tokens with responses" in said
    assert "pairs per step: 4 (4 x 1 micro-batches)" in said
    assert "center_rewards_coefficient: 0.01" in said and "margin: rewards" in said
    assert "margins: mean 0.375, sd 0.125" in said
    # There is no head over the vocabulary.
    assert "workspace" not in said


def test_records_are_shown_as_the_model_reads_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "ask", "responses": ["yes", "no."], "rewards": [1, 0.5]}] * 4
    write_jsonl(folder / "data.jsonl", rows)
    assert main([*flags(folder, "train", "--eval_fraction", "0"), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert said.count("data.jsonl:") == 2
    assert '  prompt, 4 tokens: "<s>ask"' in said
    assert '  response 1, 4 tokens, reward 1: "yes</s>"' in said
    assert '  response 2, 4 tokens, reward 0.5: "no.</s>"' in said
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
    dry_run = training._dry_run

    def watched(trainer: RunTrainer) -> Iterator[str]:
        weight = next(trainer.model.parameters())  # type: ignore[union-attr]
        start = weight.detach().clone()
        yield from dry_runs.report(trainer)
        seen.append((start, weight))
        assert weight.grad is None

    monkeypatch.setattr(
        training, "_dry_run", lambda config, make, _: dry_run(config, make, watched)
    )
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
