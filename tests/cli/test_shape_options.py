"""Options of how columns are read: each command reads shapes that are not its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rao_kernels.cli.main import main
from rao_kernels.cli.shape_options import ShapeArguments
from rao_kernels.data import ShapeOptions, load_records
from rao_kernels.errors import InputError
from tests.train.tiny import save_tiny, write_jsonl

WORDS = ("ab", "cd", "ef", "gh", "ij", "kl")
RULE = """
def f(completions, **columns):
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [float(len(text)) for text in texts]
"""


def helpsteer() -> list[dict[str, Any]]:
    """Two lines for each prompt; by correctness the second response is the better one."""
    return [
        {"prompt": f"say {w}", "response": w * (1 + j), "helpfulness": 4 - j, "correctness": 3 * j}
        for w in WORDS
        for j in range(2)
    ]


def binarized() -> list[dict[str, Any]]:
    """As in ultrafeedback_binarized: the prompt is in the conversations, too."""

    def turns(word: str, answer: str) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": f"say {word}"},
            {"role": "assistant", "content": answer},
        ]

    return [
        {
            "prompt": f"say {w}",
            "prompt_id": w,
            "chosen": turns(w, w),
            "rejected": turns(w, "no"),
            "messages": turns(w, w),
            "score_chosen": 8.0,
            "score_rejected": 2.5,
        }
        for w in WORDS
    ]


def pairs() -> list[dict[str, Any]]:
    return [{"ask": f"say {w}", "good": w, "bad": "no"} for w in WORDS]


def alpaca() -> list[dict[str, Any]]:
    return [
        {"instruction": "say", "input": w, "output": w, "history": [["a", "b"]], "system": "c"}
        for w in WORDS
    ]


RENAMED = ("--columns", "ask=prompt", "good=chosen", "bad=rejected")
WEIGHTS = ("--score_weights", "helpfulness=0.5", "correctness=1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_tiny(tmp_path / "model", chat=True)
    (tmp_path / "rule.py").write_text(RULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, rows: list[dict[str, Any]], *more: str, model: bool = True) -> None:
    write_jsonl(Path("data.jsonl"), rows)
    named = ("--model", "model") if model else ()
    assert main([command, *named, "--data", "data.jsonl", *more]) == 0


TRAINING = (
    *("--output_dir", "out", "--use_cpu", "--max_steps", "1", "--eval_fraction", "0"),
    *("--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "no"),
)


@pytest.mark.parametrize(
    ("command", "rows", "more", "told"),
    [
        ("train", helpsteer(), WEIGHTS, "helpsteer 6"),
        ("train", binarized(), ("--loss", "dpo"), "pair 6"),
        ("train", pairs(), (*RENAMED, "--label_rewards", "1", "0"), "pair 6"),
        ("sft", alpaca(), (), "alpaca 6"),
        ("sft", binarized(), ("--shape", "messages"), "messages 6"),
        ("sft", pairs(), (*RENAMED, "--responses", "best"), "pair 6"),
        ("reward-model", helpsteer(), (), "helpsteer 6"),
        ("reward-model", pairs(), RENAMED, "pair 6"),
        ("cache-ref", pairs(), (*RENAMED, "--loss", "dpo", "--ref_cache_dir", "cache"), "pair 6"),
    ],
)
def test_commands_of_training(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    rows: list[dict[str, Any]],
    more: tuple[str, ...],
    told: str,
) -> None:
    run(command, rows, *TRAINING, *more)
    assert capsys.readouterr().out.count(f"shapes: {told}") == 1
    if command != "cache-ref":
        assert (folder / "out" / "model.safetensors").is_file()


def test_sft_on_conversations_forced_by_shape_learns_the_messages(folder: Path) -> None:
    """Told by their columns these are pairs, of which all responses would not be learnt."""
    write_jsonl(Path("data.jsonl"), binarized())
    arguments = ["sft", "--model", "model", "--data", "data.jsonl", *TRAINING]
    assert main(arguments) == 2
    assert main([*arguments, "--shape", "messages"]) == 0


@pytest.mark.parametrize(
    ("rows", "more", "told"),
    [
        (alpaca(), ("--overwrite",), "alpaca 6"),
        (pairs(), (*RENAMED, "--overwrite"), "pair 6"),
        ([{"q": f"say {w}"} for w in WORDS], ("--columns", "q=prompt"), "prompt 6"),
    ],
)
def test_generate_and_what_it_writes(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    more: tuple[str, ...],
    told: str,
) -> None:
    given = ("--output", "out.jsonl", "--responses", "2", "--max_new_tokens", "3")
    run("generate", rows, *given, *more)
    assert capsys.readouterr().out.count(f"shapes: {told}") == 1
    records = load_records("out.jsonl")
    expected = load_records("data.jsonl", options=_options(more))
    assert [one.prompt for one in records] == [one.prompt for one in expected]
    assert {len(one.responses) for one in records} == {2}


def _options(flags: tuple[str, ...]) -> ShapeOptions:
    names = dict(one.split("=") for one in flags if "=" in one)
    return ShapeOptions(columns=names or None, responses_required=False)


@pytest.mark.parametrize(
    ("rows", "more", "told"),
    [
        (alpaca(), (), "alpaca 6"),
        (pairs(), RENAMED, "pair 6"),
        (helpsteer(), ("--overwrite", *WEIGHTS), "helpsteer 6"),
        (binarized(), ("--overwrite",), "pair 6"),
    ],
)
def test_annotate_and_what_it_writes(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    more: tuple[str, ...],
    told: str,
) -> None:
    run("annotate", rows, "--output", "out.jsonl", "--rule", "rule.py:f", *more, model=False)
    assert capsys.readouterr().out.count(f"shapes: {told}") == 1
    expected = load_records("data.jsonl", options=_options(more if more == RENAMED else ()))
    for record, before in zip(load_records("out.jsonl"), expected, strict=True):
        assert (record.prompt, record.responses) == (before.prompt, before.responses)
        lengths = [len(_text(response)) for response in record.responses]
        assert record.rewards == lengths


def _text(response: Any) -> str:
    return response if isinstance(response, str) else str(response[-1]["content"])


def test_other_weights_are_another_command(folder: Path) -> None:
    """What is read differs, so that the output is not gone on with."""
    given = ("--output", "out.jsonl", "--rule", "rule.py:f", "--overwrite")
    run("annotate", helpsteer(), *given, model=False)
    again = ["annotate", "--data", "data.jsonl", *given]
    assert main(again) == 0
    assert main([*again, *WEIGHTS]) == 2


def test_eval_reads_prompts_and_pairs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--use_cpu", "--output_dir", "out", "--disable_tqdm", "true")
    sampled = ("--samples", "1", "--max_new_tokens", "3", "--rule", "rule.py:f")
    run("eval", alpaca(), *more, *sampled)
    assert capsys.readouterr().out.count("shapes: alpaca 6") == 1
    both = ("--loss", "dpo", "--ref_model", "model", *sampled, *RENAMED)
    run("eval", pairs(), *more, *both)
    assert capsys.readouterr().out.count("shapes: pair 6") == 1
    found = json.loads(Path("out/eval.json").read_text())
    assert found["metrics"] and found["kl"]
    assert found["settings"]["columns"] == list(RENAMED[1:])


def test_online_reads_questions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"ask": f"say {w}", "number": n} for n, w in enumerate(WORDS)]
    more = ("--output_dir", "out", "--use_cpu", "--rounds", "1", "--loss", "grpo")
    more += ("--rule", "rule.py:f", "--max_new_tokens", "3", "--columns", "ask=prompt")
    run("online", rows, *more, "--disable_tqdm", "true", "--report_to", "none")
    assert capsys.readouterr().out.count("shapes: prompt 6") == 1
    written = load_records("out/rollouts/round-00000.jsonl")
    assert {str(one.prompt) for one in written} <= {row["ask"] for row in rows}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--columns", "ask"), "`columns`.*name=new_name.*'ask'"),
        (("--columns", "ask=prompt", "ask=chosen"), "`columns`.*'ask' twice"),
        (("--score_weights", "helpfulness=much"), "`score_weights`.*name=number"),
        (("--score_weights", "=1"), "`score_weights`.*name=number"),
        (("--label_rewards", "1"), "`label_rewards`.*two numbers"),
        (("--shape", "nothing"), "`shape`.*one of native"),
    ],
)
def test_wrong_values_name_their_option(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    write_jsonl(Path("data.jsonl"), pairs())
    given = ["--data", "data.jsonl", *flags]
    for command in (
        ["train", "--model", "model", *TRAINING],
        ["annotate", "--output", "out.jsonl", "--rule", "rule.py:f"],
        ["generate", "--model", "model", "--output", "out.jsonl"],
    ):
        assert main([*command, *given]) == 2
        assert re.search(said, capsys.readouterr().err)


def test_options_as_the_library_takes_them() -> None:
    found = ShapeArguments(
        columns=["a=b=c"], label_rewards=[1, 0], rank_rewards=True, score_weights=["x=-0.5"]
    ).options()
    expected = ShapeOptions(
        columns={"a": "b=c"}, label_rewards=(1.0, 0.0), rank_rewards=True, weights={"x": -0.5}
    )
    assert found == expected
    with pytest.raises(InputError, match="finite"):
        ShapeArguments(score_weights=["x=nan"]).options()
