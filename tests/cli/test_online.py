"""`rao-kernels online`: from prompts and a rule to a trained model, and what its rounds leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rao_kernels.cli.main import main
from rao_kernels.data import load_records
from tests.train.tiny import save_tiny, write_jsonl

RULE = """
def letters(prompts, completions, number, **columns):
    assert all(isinstance(one, int) for one in number)
    return [completion.count("a") / 6 for completion in completions]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "model")
    prompts = [{"prompt": f"say {one}", "number": n} for n, one in enumerate("bcdefghi")]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    (tmp_path / "rule.py").write_text(RULE)
    return tmp_path


def flags(folder: Path, *more: str) -> list[str]:
    return [
        *("online", "--model", str(folder / "model"), "--data", str(folder / "prompts.jsonl")),
        *("--output_dir", str(folder / "out"), "--use_cpu", "--disable_tqdm", "true"),
        *("--rule", f"{folder / 'rule.py'}:letters", "--loss", "grpo", "--max_new_tokens", "6"),
        *("--learning_rate", "1e-2", "--logging_steps", "1", "--report_to", "none", *more),
    ]


def test_the_reward_rises_and_rounds_are_training_data(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--rounds", "7", "--lr_scheduler_type", "constant", "--eval_strategy", "epoch"]
    more += ["--eval_on_start", "true", "--eval_data", str(folder / "prompts.jsonl")]
    assert main(flags(folder, *more)) == 0
    said = capsys.readouterr().out
    assert "reward/mean" in said
    entries = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").open()]
    sampled = [entry["reward/mean"] for entry in entries if "reward/mean" in entry]
    text = f"mean reward: {sampled[0]:.6g} in the first round, {sampled[-1]:.6g} in the last"
    assert text in said.splitlines()
    means = [entry["eval_reward/mean"] for entry in entries if "eval_reward/mean" in entry]
    assert len(means) == 8 and means[-1] > means[0] + 0.2
    AutoModelForCausalLM.from_pretrained(folder / "out")
    assert main(flags(folder, *more)) == 0
    assert "finished" in capsys.readouterr().out
    rounds = sorted(str(path) for path in (folder / "out" / "rollouts").glob("*.jsonl"))
    assert len(rounds) == 7
    for loss in ("grpo", "dpo"):
        arguments = ["train", "--model", str(folder / "model"), "--data", *rounds]
        arguments += ["--output_dir", str(folder / loss), "--loss", loss, "--max_steps", "1"]
        arguments += ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none"]
        assert main(arguments) == 0, capsys.readouterr().err


def test_what_is_missing_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = flags(folder)
    at = without.index("--rule")
    assert main(without[:at] + without[at + 2 :]) == 2
    assert "exactly one of" in capsys.readouterr().err
    assert main(flags(folder, "--eval_strategy", "epoch")) == 2
    assert "Give --eval_data." in capsys.readouterr().err


@pytest.mark.parametrize(("loss", "expected"), [("grpo", 0.7), ("kimi", 1.0)])
def test_rounds_say_the_temperature_of_their_logps(
    folder: Path, capsys: pytest.CaptureFixture[str], loss: str, expected: float
) -> None:
    """A loss without a ratio has log-probs of temperature 1, whatever the sampling's is."""
    more = ("--rounds", "1", "--temperature", "0.7", "--loss", loss)
    assert main(flags(folder, *more, "--refresh_reference_every", "1")) == 0
    path = folder / "out" / "rollouts" / "round-00000.jsonl"
    sampled = [one.sampled for one in load_records(path)]
    assert all(one and one.old_logps and one.logp_temperature == expected for one in sampled)
    arguments = ["train", "--model", str(folder / "model"), "--data", str(path), "--loss", "grpo"]
    arguments += ["--output_dir", str(folder / "again"), "--max_steps", "1", "--report_to", "none"]
    status = main([*arguments, "--use_cpu", "--eval_fraction", "0"])
    assert status == (0 if expected == 1.0 else 2)
    assert ("are of temperature 0.7" in capsys.readouterr().err) == bool(status)
