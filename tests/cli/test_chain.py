"""The whole pipeline by commands: each stage reads the files of the one before as they are."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rao_kernels.cli.main import main
from rao_kernels.train import prepare
from tests import seeds
from tests.conftest import SHARED
from tests.train.tiny import save_tiny, write_jsonl

ROOT = Path(__file__).parents[2]
STORIES = SHARED / "models" / "stories260k"
THINGS = "sun dog cat bird fish tree house boat moon frog car bed".split()
PLACES = "here there home far near back".split()
# Of the answers that the SFT model learns to give, those with "happy" are preferred.
WORDS = ("happy", "sad", "big", "red")
COMMON = ("--use_cpu", "--disable_tqdm", "true", "--report_to", "none")
# Nothing has trained these models on prompts, so that a few steps change the probability of one by
# orders of magnitude: RAO without its prompt term.
RAO = ("--loss", "rao", "--beta", "2", "--prompt_term", "none")

Rows = list[dict[str, Any]]


def write_data(folder: Path) -> None:
    """Prompts with one answer for SFT, pairs for the reward model, and prompts to sample for."""
    draw = random.Random(seeds.shifted())
    prompts = [f"the {thing} is {place}. it is" for thing in THINGS for place in PLACES]
    draw.shuffle(prompts)
    known, unseen = prompts[:48], prompts[48:]
    answers: Rows = [
        {"prompt": prompt, "completion": f" {word}."} for prompt in known for word in WORDS
    ]
    draw.shuffle(answers)
    write_jsonl(folder / "answers.jsonl", answers)
    for name, part in {"pairs": known, "held_out_pairs": unseen}.items():
        pairs: Rows = [
            {"prompt": prompt, "chosen": " happy.", "rejected": f" {draw.choice(WORDS[1:])}."}
            for prompt in part
        ]
        write_jsonl(folder / f"{name}.jsonl", pairs)
    asked: Rows = [{"id": i, "prompt": prompt} for i, prompt in enumerate(known)]
    write_jsonl(folder / "prompts.jsonl", asked)
    write_jsonl(folder / "held_out.jsonl", [{"prompt": prompt} for prompt in unseen])


def read(path: str) -> Rows:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def seed() -> tuple[str, str]:
    return "--seed", str(seeds.shifted(1))


@pytest.mark.parametrize("model", ["tiny", "stories260k"])
def test_the_whole_pipeline(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if model == "tiny":
        base = save_tiny(tmp_path / "base", seed=seeds.shifted(3))
    elif not STORIES.is_dir():
        pytest.skip(f"{STORIES} is absent")
    else:
        base = STORIES
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    fine_tune(str(base))
    train_reward_model()
    sample()
    score()
    align(monkeypatch)
    evaluate(capsys)


def fine_tune(base: str) -> None:
    options = ("--learning_rate", "5e-3", "--num_train_epochs", "8", *seed(), *COMMON)
    data = ("--data", "answers.jsonl", "--per_device_train_batch_size", "16")
    assert main(["sft", "--model", base, *data, "--output_dir", "sft", *options]) == 0
    logged = [line for line in read("sft/metrics.jsonl") if "eval_loss" in line]
    assert logged[-1]["eval_loss"] < logged[0]["eval_loss"]


def train_reward_model() -> None:
    """From the SFT model; it ranks pairs whose prompts it has not seen."""
    data = ("--data", "pairs.jsonl", "--eval_data", "held_out_pairs.jsonl")
    options = ("--learning_rate", "2e-3", "--num_train_epochs", "3", *seed(), *COMMON)
    assert main(["reward-model", "--model", "sft", *data, "--output_dir", "rm", *options]) == 0
    report = json.loads(Path("rm/reward_model.json").read_text())
    assert report["pairs"] == 24
    # By chance 17 of 24 or more are right once in 30 times, all but two once in 50,000.
    assert report["accuracy"] >= 22 / 24


def sample() -> None:
    options = ("--responses", "6", "--max_new_tokens", "10", *seed())
    files = ("--data", "prompts.jsonl", "--output", "samples.jsonl")
    assert main(["generate", "--model", "sft", *files, *options]) == 0
    asked, found = read("prompts.jsonl"), read("samples.jsonl")
    assert [{name: row[name] for name in ("id", "prompt")} for row in found] == asked
    assert all(len(row["responses"]) == len(row["finished"]) == 6 for row in found)
    texts = [text for row in found for text in row["responses"]]
    assert 0.05 < sum("happy" in text for text in texts) / len(texts) < 0.6


def score() -> None:
    """By a process of its own; the records keep what they had, and each response gets a number."""
    files = ("--data", "samples.jsonl", "--output", "scored.jsonl")
    subprocess.run(
        [sys.executable, "-m", "rao_kernels.cli", "annotate", *files, "--reward_model", "rm"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    samples, scored = read("samples.jsonl"), read("scored.jsonl")
    added = [{name: row.pop(name) for name in ("rewards", "scorer")} for row in scored]
    assert scored == samples
    rewards: dict[bool, list[float]] = {True: [], False: []}
    for row, new in zip(samples, added, strict=True):
        for text, reward in zip(row["responses"], new["rewards"], strict=True):
            rewards["happy" in text].append(reward)
    mean = {found: sum(part) / len(part) for found, part in rewards.items()}
    assert mean[True] > mean[False]


def align(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAO, with the log-probs of the reference from `cache-ref` and no other."""
    shared = (
        *("--model", "sft", "--data", "scored.jsonl", "--ref_cache_dir", "ref"),
        *("--per_device_train_batch_size", "4", *RAO, *seed(), *COMMON),
    )
    assert main(["cache-ref", *shared]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "score_batch", lambda *_, **__: pytest.fail("scored again"))
        options = ("--learning_rate", "1e-3", "--num_train_epochs", "6", "--warmup_steps", "0.1")
        files = ("--output_dir", "rao", "--ref_cache", "require")
        assert main(["train", *shared, *options, *files]) == 0


def evaluate(capsys: pytest.CaptureFixture[str]) -> None:
    """On prompts that no stage has trained on, RAO is rewarded above the SFT model."""
    shared = ("--model", "rao", "--ref_model", "sft", *seed(), *COMMON)
    samples = ("--samples", "4", "--max_new_tokens", "10", "--reward_model", "rm")
    data = ("--data", "held_out.jsonl", "--against", "sft", "--output_dir", "wins")
    capsys.readouterr()
    assert main(["eval", *shared, *data, *samples]) == 0
    found = json.loads(Path("wins/eval.json").read_text())
    printed = capsys.readouterr().out
    low, _ = found["comparison"]["difference_interval"]
    assert low > 0
    assert found["comparison"]["win_rate"]["value"] > 0.6
    assert found["kl"]["k3_per_sequence"]["value"] > 0
    for name in ("model", "against"):
        mean = found["mean_reward"][name]
        assert mean["value"] == pytest.approx(sum(found["rewards"][name]) / 24)
        number = f"{mean['value']:.4f} ± {mean['std_error']:.4f}"
        assert re.search(rf"^mean reward, {name} +{re.escape(number)}$", printed, re.M)
    # The metrics of the loss, on the scored records: far less of the rewards is unexplained than
    # before training, when all of their spread is.
    for name in ("sft", "rao"):
        chosen = ("--model", name, "--ref_model", "sft", "--output_dir", f"loss_{name}")
        data = ("--data", "scored.jsonl")
        assert main(["eval", *chosen, *data, *RAO, *seed(), *COMMON]) == 0
    before, after = (
        json.loads(Path(f"loss_{name}/eval.json").read_text())["metrics"] for name in ("sft", "rao")
    )
    assert before["log_ratios/sequence_mean"] == 0
    assert after["rao/mse"] < 0.7 * before["rao/mse"]
    assert f"{'rao/mse':<28}{after['rao/mse']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("fresh", [False, True], ids=["same adapter", "fresh adapter"])
def test_an_adapter_is_trained_on_from_sft(
    fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is the SFT model, adapter included, and the policy begins as it."""
    pytest.importorskip("peft")
    base = save_tiny(tmp_path / "base", seed=seeds.shifted(3))
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    lora = ("--lora_r", "4", "--learning_rate", "1e-2", *seed(), *COMMON)
    data = ("--data", "answers.jsonl", "--max_steps", "10")
    assert main(["sft", "--model", str(base), *data, "--output_dir", "sft", *lora]) == 0
    assert Path("sft/adapter_model.safetensors").is_file()

    data = ("--data", "pairs.jsonl", "--loss", "dpo", "--max_steps", "2", "--output_dir", "dpo")
    assert main(["train", "--model", "sft", *data, *(lora if fresh else lora[2:])]) == 0
    first, *_, last = (line for line in read("dpo/metrics.jsonl") if "eval_loss" in line)
    assert first["step"] == 0
    assert first["eval_rewards/chosen"] == first["eval_rewards/rejected"] == 0
    assert last["eval_rewards/chosen"] != 0
    # Not the base model: the two differ on these responses.
    pairs = ("--data", "pairs.jsonl", "--loss", "dpo", *seed(), *COMMON)
    models = ("--model", "sft", "--ref_model", str(base), "--output_dir", "against_base")
    assert main(["eval", *models, *pairs]) == 0
    metrics = json.loads(Path("against_base/eval.json").read_text())["metrics"]
    assert abs(metrics["log_ratios/sequence_mean"]) > 1


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_the_commands_of_the_documentation_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are written, with a tiny model, few steps and short responses."""
    text = (ROOT / page).read_text()
    (block,) = re.findall(r"^```(?:sh)?\n(rao-kernels sft.*?)^```$", text, re.M | re.S)
    commands = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    names = [command[0] for command in commands if command[0] != "cache-ref"]
    assert names == "sft reward-model generate annotate train online eval".split()
    save_tiny(tmp_path / "DIR_OR_NAME", seed=seeds.shifted(3))
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    steps = ("--max_steps", "2", *COMMON)
    short = ("--max_new_tokens", "8", "--limit", "6")
    more = {
        **dict.fromkeys(("sft", "reward-model", "train"), steps),
        "cache-ref": COMMON,
        "generate": short,
        "online": ("--max_new_tokens", "8", *steps),
        "eval": (*short, *COMMON),
    }
    for command in commands:
        assert main([*command, *more.get(command[0], ())]) == 0, command
        if command[0] == "train":
            for loss in ("dpo", "kto"):
                other = [f"{one}_{loss}" if one == "rao" else one for one in command]
                assert main([*other, "--loss", loss, *steps]) == 0
