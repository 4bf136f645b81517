"""`rao-kernels annotate`: each source of rewards, errors in one line, Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rao_kernels.cli.main import main
from rao_kernels.cli.scorer_options import ScorerOptions, make_scorer
from rao_kernels.errors import InputError
from rao_kernels.rewards import ImplicitScorer, JudgeScorer, LocalJudge, RewardEnsemble, RuleScorer
from tests.rewards.models import endpoint, save_tiny_reward_model
from tests.train.tiny import save_tiny, write_jsonl

RULE = "def f(prompts, completions, **columns):\n    return [len(one) for one in completions]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [
        {"prompt": f"ask {number}", "responses": ["x" * (number + 1), "yyy"], "id": number}
        for number in range(5)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rule.py").write_text(RULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def annotated(*flags: str, status: int = 0) -> list[dict[str, Any]]:
    given = ["annotate", "--data", "rows.jsonl", "--output", "scored.jsonl", *flags]
    assert main([*given, "--reward_device", "cpu", "--disable_tqdm", "true"]) == status
    scored = Path("scored.jsonl")
    lines = scored.read_text().splitlines() if scored.exists() else []
    return [json.loads(line) for line in lines]


def test_rewards_of_a_rule_are_written_told_and_drawn(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored = annotated("--rule", "rule.py:f")
    assert [row["rewards"] for row in scored] == [[float(n + 1), 3.0] for n in range(5)]
    assert [row["id"] for row in scored] == list(range(5))
    printed = capsys.readouterr().out
    assert "5 records are in scored.jsonl" in printed
    assert "10 rewards: mean 3," in printed
    assert "equal rewards: 20.0% of the pairs" in printed
    assert (folder / "scored.png").stat().st_size > 5000


def test_the_progress_bar_knows_the_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Records that cannot be read are not counted."""
    with open("rows.jsonl", "a") as file:
        file.write("{}\n")
    given = ["--data", "rows.jsonl", "--output", "scored.jsonl", "--bad_rows", "skip"]
    assert main(["annotate", *given, "--rule", "rule.py:f", "--limit", "9"]) == 0
    assert "5/5 [" in capsys.readouterr().err


def test_rewards_of_one_and_of_several_reward_models(folder: Path) -> None:
    models = [str(save_tiny_reward_model(folder / f"rm{n}", n)) for n in range(2)]
    single = annotated("--reward_model", models[0])
    (folder / "scored.jsonl").unlink()
    several = annotated("--reward_model", *models)
    for one, row in zip(single, several, strict=True):
        assert "reward_ensemble" not in one
        first, second = torch.tensor(row["reward_ensemble"])
        torch.testing.assert_close(first, torch.tensor(one["rewards"]))
        torch.testing.assert_close((first + second) / 2, torch.tensor(row["rewards"]))


def test_rewards_of_a_judge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    (folder / "ask.txt").write_text("{response}")

    def reply(asked: dict[str, Any]) -> tuple[int, str]:
        return 200, f"Score: {len(asked['messages'][0]['content'])}"

    with endpoint(reply) as (url, requests):
        given = ("--judge", url, "--judge_model", "m", "--judge_prompt", "ask.txt")
        scored = annotated(*given)
    assert [row["rewards"] for row in scored] == [[float(n + 1), 3.0] for n in range(5)]
    assert len(requests) == 10


def test_a_text_that_a_judge_refuses_is_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    (folder / "ask.txt").write_text("{response}")

    def reply(asked: dict[str, Any]) -> tuple[int, str]:
        text = asked["messages"][0]["content"]
        return (400, "too long") if text == "xxxx" else (200, f"Score: {len(text)}")

    with endpoint(reply) as (url, _):
        given = ("--judge", url, "--judge_model", "m", "--judge_prompt", "ask.txt")
        scored = annotated(*given, "--bad_rows", "skip")
    assert [row["id"] for row in scored] == [0, 1, 2, 4]
    said = capsys.readouterr().err
    assert "skipped rows.jsonl:4: the judge's endpoint refuses it" in said and "too long" in said


def test_implicit_rewards(folder: Path) -> None:
    policy, reference = (str(save_tiny(folder / str(n), n)) for n in range(2))
    given = ("--implicit", policy, "--implicit_ref", reference, "--implicit_beta", "0.5")
    scored = annotated(*given)
    assert scored[0]["scorer"]["beta"] == 0.5
    assert len({reward for row in scored for reward in row["rewards"]}) > 5


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "exactly one of --reward_model, --rule, --judge, --implicit, got none"),
        (("--rule", "rule.py:f", "--judge", "m"), "got rule and judge"),
        (("--rule", "rule.py:f", "--judge_prompt", "x"), "`judge_prompt`"),
        (("--rule", "rule.py:f", "--implicit_ref", "x"), "`implicit_ref`"),
        (("--rule", "rule.py:f", "--judge_model", "x"), "`judge_model`"),
        (("--rule", "rule.py:f", "--judge_max_new_tokens", "9"), "`judge_max_new_tokens`"),
        (("--judge", "m", "--judge_max_new_tokens", "0"), "`judge_max_new_tokens`"),
        (
            (*("--judge", "http://x", "--judge_model", "m"), "--judge_max_new_tokens", "9"),
            "`judge_max_new_tokens`",
        ),
        (("--judge", "http://127.0.0.1:9/v1"), "`judge_model`"),
        (("--judge", "m", "--judge_prompt", "none.txt"), "`judge_prompt`"),
        (("--implicit", "m"), "`implicit_ref`"),
        (("--rule", "rule.py:f", "--reward_batch_size", "0"), "`reward_batch_size`"),
        (("--rule", "rule.py:g"), "no function 'g'"),
        (("--rule", "rule.py:f", "--output", "scored.json"), "`output`"),
        (("--rule", "rule.py:f", "--data", "none.jsonl"), "none.jsonl: "),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], says: str
) -> None:
    assert annotated(*flags, status=2) == []
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert says in said[0]


def test_skipped_records_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(folder / "rows.jsonl", "a") as file:
        file.write('{"prompt": "no answers"}\n')
    assert len(annotated("--rule", "rule.py:f", "--bad_rows", "skip")) == 5
    assert "skipped rows.jsonl:6: " in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = RULE.replace("def f(", "calls = []\ndef f(").replace(
        "    return",
        "    calls.append(1)\n    if len(calls) == 4: raise KeyboardInterrupt\n    return",
    )
    (folder / "rule.py").write_text(source)
    flags = ("--rule", "rule.py:f", "--batch_size", "1")
    assert len(annotated(*flags, status=130)) == 3
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.endswith(
        "interrupted: 3 records are in scored.jsonl; the same command goes on behind them"
    )
    assert len(annotated(*flags)) == 5


def test_a_scorer_is_made_of_the_options(folder: Path) -> None:
    model, other = (str(save_tiny_reward_model(folder / f"rm{n}", n)) for n in range(2))
    several = make_scorer(ScorerOptions(reward_model=[model, other], reward_dtype="bfloat16"))
    assert isinstance(several, RewardEnsemble)
    assert {one["dtype"] for one in several.describe()["members"]} == {"bfloat16"}
    assert isinstance(make_scorer(ScorerOptions(rule="rule.py:f")), RuleScorer)
    chat = str(save_tiny(folder / "chat", chat=True))
    judge = make_scorer(ScorerOptions(judge=chat, judge_max_new_tokens=3))
    assert isinstance(judge, JudgeScorer) and isinstance(judge.judge, LocalJudge)
    assert judge.judge.max_new_tokens == 3
    policy = str(save_tiny(folder / "policy"))
    implicit = make_scorer(ScorerOptions(implicit=policy, implicit_ref=policy))
    assert isinstance(implicit, ImplicitScorer)
    plain = ScorerOptions(implicit=chat, implicit_ref=chat, implicit_prompt_format="plain")
    assert make_scorer(plain).describe()["prompt_format"] == "plain"
    with pytest.raises(InputError):
        make_scorer(ScorerOptions(judge=policy))  # has no chat template
