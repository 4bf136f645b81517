"""`rao-kernels eval` on tiny models whose KL, rewards and order are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rao_kernels.cli.eval import run
from rao_kernels.errors import DataError, InputError
from rao_kernels.train import RAOConfig, RAOTrainer
from tests.train.tiny import save_tiny, tiny_model, tiny_rows, tiny_tokenizer, write_jsonl

RULE = """
def letters(prompts, completions, gold, finished):
    assert len(prompts) == len(completions) == len(gold) == len(finished)
    return [float(text.count("a")) for text in completions]

def length(completions, **columns):
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "model")
    save_tiny(tmp_path / "other", 1)
    (tmp_path / "rule.py").write_text(RULE)
    words = ["ab", "c", "de fg", "h", "ijk", "l", "m n o", "p"]
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": w, "gold": w} for w in words])
    write_jsonl(tmp_path / "rows.jsonl", tiny_rows(12))
    return tmp_path


def evaluated(folder: Path, data: str, *more: str) -> dict[str, Any]:
    out = folder / "out"
    run(
        [
            *("--model", str(folder / "model"), "--data", str(folder / data), "--use_cpu"),
            *("--output_dir", str(out), "--disable_tqdm", "true", *more),
        ]
    )
    assert (out / "eval.png").read_bytes().startswith(b"\x89PNG")
    found: dict[str, Any] = json.loads((out / "eval.json").read_text())
    return found


def test_a_model_that_is_its_reference_has_no_kl_and_ties(folder: Path) -> None:
    found = evaluated(
        folder,
        "prompts.jsonl",
        *("--samples", "3", "--max_new_tokens", "6", "--ref_model", str(folder / "model")),
        *("--rule", f"{folder}/rule.py:letters", "--against", str(folder / "model")),
    )
    assert {one["value"] for one in found["kl"].values()} == {0.0}
    assert set(found["log_ratios"]) == {0.0}
    assert found["comparison"]["ties"] == 8
    assert found["comparison"]["win_rate"]["value"] == 0.5
    assert found["mean_reward"]["model"] == found["mean_reward"]["against"]


def test_kl_of_one_token_is_that_of_the_distributions(folder: Path) -> None:
    """By enumeration: the mean over the prompts of the KL of the two next-token distributions."""
    found = evaluated(
        folder,
        "prompts.jsonl",
        *("--samples", "400", "--max_new_tokens", "1", "--ref_model", str(folder / "other")),
    )
    model, other, tokenizer = tiny_model(), tiny_model(1), tiny_tokenizer()
    kls = []
    for line in (folder / "prompts.jsonl").read_text().splitlines():
        ids = torch.tensor([[1, *tokenizer(json.loads(line)["prompt"]).input_ids]])
        with torch.no_grad():
            p, q = (one(ids).logits[0, -1].double().log_softmax(-1) for one in (model, other))
        kls.append(float((p.exp() * (p - q)).sum()))
    expected = sum(kls) / len(kls)
    # The errors in the file are over prompts, whose KLs differ; of these very prompts each
    # estimate's error is that of its draws.
    spread = torch.tensor(found["log_ratios"]).reshape(8, 400).std(1).square().mean() ** 0.5
    error = float(spread) / (8 * 400) ** 0.5
    for name in ("k1_per_token", "k3_per_token", "k1_per_sequence", "k3_per_sequence"):
        assert abs(found["kl"][name]["value"] - expected) < 5 * error, name
    assert expected > 20 * error


def test_rewards_and_wins_are_those_of_the_samples(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a model that ends every response at once, a rule on length always wins."""
    silent = tiny_model(1)
    silent.generation_config.eos_token_id = list(range(64))
    silent.save_pretrained(folder / "other")
    options = ("--samples", "2", "--max_new_tokens", "9", "--rule", f"{folder}/rule.py:length")
    against = ("--against", str(folder / "other"))
    found = evaluated(folder, "prompts.jsonl", *options, *against)
    assert found["samples"]["against"] == {"mean_tokens": 1.0, "finished": 1.0}
    means = found["rewards"]["model"]
    assert found["mean_reward"]["model"]["value"] == pytest.approx(sum(means) / 8)
    assert found["samples"]["model"]["mean_tokens"] > 2
    comparison = found["comparison"]
    counts = [comparison[name] for name in ("wins", "ties", "losses")]
    others = found["rewards"]["against"]
    pairs = list(zip(means, others, strict=True))
    assert counts == [sum(a > b for a, b in pairs), sum(a == b for a, b in pairs), 0]
    assert "win rate" in capsys.readouterr().out
    # The same command finds the same.
    assert evaluated(folder, "prompts.jsonl", *options, *against) == found
    assert (
        evaluated(folder, "prompts.jsonl", *options)["mean_reward"]["model"]
        == (found["mean_reward"]["model"])
    )


@pytest.mark.parametrize("loss", ["rao", "dpo", "sft", "simpo"])
def test_metrics_are_those_of_the_trainers_evaluation(folder: Path, loss: str) -> None:
    found = evaluated(folder, "rows.jsonl", "--loss", loss, "--ref_model", str(folder / "other"))[
        "metrics"
    ]
    args = RAOConfig(
        output_dir=str(folder / "trainer"), loss=loss, use_cpu=True, disable_tqdm=True,
        report_to="none",
    )  # fmt: skip
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    trainer = RAOTrainer(
        tiny_model(), tiny_model(1), args, eval_dataset=rows, processing_class=tiny_tokenizer()
    )
    expected = trainer.evaluate()
    for name, value in found.items():
        if not name.startswith("log_ratios/"):
            assert value == pytest.approx(expected[f"eval_{name}"], rel=1e-5), name
    assert found["loss"] == pytest.approx(expected["eval_loss"])
    if loss == "dpo":
        assert 0 <= found["rewards/accuracies"] <= 1
        beta = args.hyperparameters()["beta"]
        both = (found["rewards/chosen"] + found["rewards/rejected"]) / 2 / beta
        assert found["log_ratios/sequence_mean"] == pytest.approx(both, rel=1e-4)


def test_a_loss_and_samples_in_one_run(folder: Path) -> None:
    found = evaluated(
        folder,
        "rows.jsonl",
        *("--loss", "rao", "--ref_model", str(folder / "other"), "--samples", "1"),
        *("--max_new_tokens", "4", "--limit", "5"),
    )
    assert "loss" in found["metrics"] and len(found["log_ratios"]) == 5


@pytest.mark.parametrize(
    ("more", "argument"),
    [
        ((), "loss"),
        (("--against", "x"), "samples"),
        (("--rule", "x:y"), "samples"),
        (("--samples", "2"), "ref_model"),
        (("--samples", "2", "--against", "x"), "against"),
        (("--samples", "2", "--rule", "x:y", "--judge", "z"), "reward_model"),
        (("--samples", "2", "--implicit_beta", "2"), "reward_model"),
        (("--samples", "2", "--ref_model", "x", "--temperature", "0.5"), "temperature"),
        (("--samples", "2", "--ref_model", "x", "--top_k", "5"), "top_k"),
        (("--samples", "-1"), "responses"),
        (("--loss", "nonsense"), "loss"),
    ],
)
def test_options_that_lack_another(folder: Path, more: tuple[str, ...], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        evaluated(folder, "prompts.jsonl", *more)
    assert caught.value.argument == argument
    assert not (folder / "out").exists()


def test_a_loss_without_its_reference(folder: Path) -> None:
    with pytest.raises(InputError, match=r"`ref_model`.*'dpo'"):
        evaluated(folder, "rows.jsonl", "--loss", "dpo")


def test_samples_without_a_reward_are_named_and_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "rule.py").write_text(
        "def f(prompts, **columns):\n    return [None if p in 'c h' else 1.0 for p in prompts]\n"
    )
    more = ("--samples", "2", "--max_new_tokens", "4", "--against", str(folder / "other"))
    found = evaluated(folder, "prompts.jsonl", *more, "--rule", f"{folder}/rule.py:f")
    assert found["samples"]["model"]["without_reward"] == 4
    assert found["mean_reward"]["model"]["value"] == 1.0
    assert found["comparison"]["ties"] == 6
    said = capsys.readouterr()
    assert f"{folder}/prompts.jsonl:2" in said.err
    assert "4 without a reward" in said.out


def test_rewards_that_all_fail_are_an_error(folder: Path) -> None:
    (folder / "rule.py").write_text(
        "def f(prompts, **columns):\n    return [None] * len(prompts)\n"
    )
    more = ("--samples", "1", "--max_new_tokens", "4", "--rule", f"{folder}/rule.py:f")
    with pytest.raises(DataError, match="prompts.jsonl:1"):
        evaluated(folder, "prompts.jsonl", *more)
