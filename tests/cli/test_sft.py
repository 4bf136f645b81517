"""`rao-kernels sft`: what is learnt, its options and defaults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rao_kernels.cli.main import main
from rao_kernels.cli.sft import NOT_OF_SFT, Choice, KeepResponses
from rao_kernels.data import Record, load_records
from rao_kernels.data.records import SampledTokens
from rao_kernels.errors import DataError
from tests.train.tiny import save_tiny, tiny_rows, write_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "model")
    write_jsonl(tmp_path / "data.jsonl", tiny_rows(12))
    return tmp_path


def flags(folder: Path, *more: str) -> list[str]:
    return [
        *("sft", "--model", str(folder / "model"), "--data", str(folder / "data.jsonl")),
        *("--output_dir", str(folder / "out"), "--use_cpu", "--disable_tqdm", "true"),
        *("--logging_steps", "1", "--eval_fraction", "0.3", "--report_to", "none", *more),
    ]


def test_learns_the_answers(
    folder: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    rows = [{"prompt": f"say {letter}", "responses": ["yes."], "rewards": [1]} for letter in "abcd"]
    write_jsonl(folder / "data.jsonl", rows)
    more = ("--learning_rate", "1e-2", "--max_steps", "12", "--eval_fraction", "0")
    assert main(flags(folder, *more, "--eval_data", str(folder / "data.jsonl"))) == 0
    assert "mean_token_accuracy" in capsys.readouterr().out
    assert not [one for one in recwarn if "rewards/margins" in str(one.message)]
    entries = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").open()]
    evaluations = [entry for entry in entries if "eval_loss" in entry]
    assert evaluations[-1]["eval_loss"] < 0.5 * evaluations[0]["eval_loss"]
    assert evaluations[-1]["eval_mean_token_accuracy"] > 0.9
    assert "eval_entropy" in evaluations[-1]
    AutoModelForCausalLM.from_pretrained(folder / "out")


def test_defaults_and_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sft", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "(default: 2e-05)" in printed
    assert "Passes over the training data. (default: 1.0)" in printed
    assert "--ref_model" not in printed
    for name in NOT_OF_SFT:
        assert f"--{name} " not in printed
    assert main(flags(folder, "--beta", "0.1")) == 2
    assert "--beta" in capsys.readouterr().err


def test_a_loss_that_is_not_for_fine_tuning_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(flags(folder, "--loss", "rao"))
    assert stopped.value.code == 2
    assert "'sft', 'dft'" in capsys.readouterr().err


@pytest.mark.parametrize(("which", "expected"), [("all", ["a", "b", "c"]), ("best", ["b", "c"])])
def test_responses_by_reward(which: Choice, expected: list[str]) -> None:
    row = {"prompt": "p", "responses": ["a", "b", "c"], "rewards": [0, 1, 1]}
    (record,) = map(KeepResponses(which), load_records([row]))
    assert record.responses == expected
    assert record.rewards is None and record.preferred is None


def test_pairs_are_learnt_only_when_the_chosen_one_is_asked_for() -> None:
    pairs = load_records([{"prompt": "p", "chosen": "good", "rejected": "bad"}])
    (record,) = map(KeepResponses("best"), pairs)
    assert record.responses == ["good"]
    with pytest.raises(DataError, match="rejected response.*--responses best"):
        KeepResponses("all")(pairs[0])


def test_responses_without_rewards() -> None:
    one = Record("p", ["a"], None, "x:1")
    two = Record("p", ["a", "b"], None, "x:2")
    assert KeepResponses("best")(one).responses == ["a"]
    assert KeepResponses("all")(two).responses == ["a", "b"]
    with pytest.raises(DataError, match="x:2: has 2 responses and no rewards"):
        KeepResponses("best")(two)


def test_sampled_tokens_stay_with_their_responses() -> None:
    sampled = SampledTokens([1], [[2], [3, 4], [5]], [[-0.1], [-0.2, -0.3], [-0.4]])
    marks = [True, False, True]
    record = Record("p", ["a", "b", "c"], [0.0, 2.0, 1.0], "x:1", sampled=sampled, finished=marks)
    best = KeepResponses("best")(record)
    assert best.finished == [False]
    assert best.sampled == SampledTokens([1], [[3, 4]], [[-0.2, -0.3]])
    same = KeepResponses("all")(record)
    assert same.sampled == sampled
