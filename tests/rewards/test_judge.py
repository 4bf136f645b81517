"""Rewards of a judge: what it is asked, how its score is read, and the models that answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rao_kernels.errors import InputError
from rao_kernels.rewards import (
    Candidate,
    EndpointJudge,
    JudgeScorer,
    LocalJudge,
    UnscoredError,
)
from tests.train.tiny import save_tiny

from .models import StubJudge, candidates, endpoint


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Fine.\n\nScore: 7", 7.0),
        ("Score: 3 would be harsh.\nScore: 8.5", 8.5),
        ("**Score:** 4/10", 4.0),
        ("score: [[9]]", 9.0),
    ],
)
def test_the_last_score_of_the_answer_counts(answer: str, score: float) -> None:
    assert JudgeScorer(StubJudge(lambda _: answer)).score(candidates(["a"])) == [score]


@pytest.mark.parametrize("answer", ["", "I cannot say.", "7", "Score: high", "Score: 11"])
def test_an_answer_without_a_score_names_the_record_and_is_quoted(answer: str) -> None:
    judge = StubJudge(lambda asked: answer if "bad" in asked else "Score: 5")
    with pytest.raises(UnscoredError, match="rows:1: the judge's") as caught:
        JudgeScorer(judge).score(candidates(["good", "bad", "fine"]))
    assert repr(answer) in str(caught.value)
    assert (caught.value.found[0], caught.value.found[2]) == (5.0, 5.0)


def test_fields_are_filled_once() -> None:
    judge = StubJudge(lambda _: "Score: -2")
    template = 'As {"json": 1}: {prompt} | {response} | {reference}'
    given = Candidate("what is {response}", "it is {prompt}", "x", {"reference": "a {reference}"})
    assert JudgeScorer(judge, template=template).score([given]) == [-2.0]
    assert judge.asked == ['As {"json": 1}: what is {response} | it is {prompt} | a {reference}']


def test_the_judge_sees_all_turns() -> None:
    judge = StubJudge(lambda _: "Score: 5")
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    JudgeScorer(judge).score([Candidate(turns, "good day", "x")])
    assert "system: be brief\n\nuser: hello" in judge.asked[0]
    assert "good day" in judge.asked[0]


def test_a_missing_reference_is_named() -> None:
    scorer = JudgeScorer(StubJudge(lambda _: "Score: 5"), template="{response} {reference}")
    with pytest.raises(UnscoredError, match="rows:0: no column `reference`"):
        scorer.score(candidates(["a"]))


def test_a_pattern_of_ones_own() -> None:
    judge = StubJudge(lambda _: "<grade>42</grade>")
    scorer = JudgeScorer(judge, template="{response}", pattern=r"<grade>(\d+)</grade>")
    assert scorer.score(candidates(["a"])) == [42.0]
    assert scorer.describe() != JudgeScorer(judge, template="{response}").describe()
    assert scorer.describe() != JudgeScorer(judge, pattern=r"<grade>(\d+)</grade>").describe()


@pytest.mark.parametrize(
    "wrong", [{"template": "{prompt}"}, {"pattern": "score"}, {"pattern": "(("}]
)
def test_a_useless_template_or_pattern_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError):
        JudgeScorer(StubJudge(str), **wrong)


def test_an_endpoint_is_asked_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    failed: set[str] = set()

    def reply(asked: dict[str, Any]) -> tuple[int, str]:
        text = asked["messages"][0]["content"]
        if "again" in text and text not in failed:
            failed.add(text)
            return 503, "busy"
        return 200, f"Score: {text.count('z') + 1}"

    with endpoint(reply) as (url, requests):
        judge = EndpointJudge(url, "some-model", concurrency=3)
        scorer = JudgeScorer(judge, template="{response}")
        found = scorer.score(candidates(["z", "again", "zzz", "", "zz again"]))
    assert found == [2.0, 1.0, 4.0, 1.0, 3.0]
    assert len(requests) == 7
    assert {(one["model"], one["temperature"], one["key"]) for one in requests} == {
        ("some-model", 0.0, "Bearer secret")
    }
    assert scorer.describe()["endpoint"] == url


def test_a_refusal_of_the_endpoint_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with endpoint(lambda _: (401, "no such\nkey")) as (url, _):
        scorer = JudgeScorer(EndpointJudge(url, "m"))
        with pytest.raises(InputError, match="`judge`: .*answers at http.*no such") as caught:
            scorer.score(candidates(["a", "b"]))
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="Set OPENAI_API_KEY"):
        EndpointJudge("http://127.0.0.1:9/v1", "m")


def test_a_local_judge_answers_in_batches_as_alone(tmp_path: Path) -> None:
    name = save_tiny(tmp_path / "judge", chat=True)
    chats = [[{"role": "user", "content": text}] for text in ("a", "what is it. a cat", "no no")]
    single = LocalJudge(name, device="cpu", batch_size=1, max_new_tokens=8)
    joint = LocalJudge(name, device="cpu", batch_size=3, max_new_tokens=8)
    answers = single.answer(chats)
    assert answers == joint.answer(chats)
    assert len(set(answers)) > 1
    assert joint.describe()["model"] == str(name)


def test_a_local_judge_needs_a_chat_template(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chat template"):
        LocalJudge(save_tiny(tmp_path / "judge"), device="cpu")
