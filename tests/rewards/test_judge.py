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
    Unanswered,
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
        ("**Score**: **8**", 8.0),
        ('{"score": 6}', 6.0),
        ("Score (1-10): 8", 8.0),
        ("**Score (out of 10)**: 8", 8.0),
        ("Score = 3.5", 3.5),
        ("Score:\n7.", 7.0),
        ("Score: 3. For a score > 8 it would need sources.", 3.0),
        ("Score: 3. A score 8 needs sources; to score - 9 - more.", 3.0),
    ],
)
def test_the_last_score_of_the_answer_counts(answer: str, score: float) -> None:
    assert JudgeScorer(StubJudge(lambda _: answer)).score(candidates(["a"])) == [score]


@pytest.mark.parametrize(
    "answer",
    [
        *("", "I cannot say.", "7", "Score: high", "Score: 11", "A score > 8 needs more."),
        # Two numbers of which neither is said to be the score.
        *(
            "Score: (1-10) unknown",
            "Score: 1 - 10",
            "Score: 8 or 9",
            "Score: 10\u201312",
            "Score: 8,5",
        ),
    ],
)
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


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        (None, "no column `reference`"),
        ("", "no column `reference`"),
        (float("nan"), "no column `reference`"),
        (["42", "43"], r"reference\[0\] is not a message, got '42'"),
        (True, "`reference` is True, not a text"),
        ({"answer": 42}, "`reference` is {'answer': 42}, not a text"),
    ],
)
def test_a_reference_that_is_no_text_names_the_record(reference: object, says: str) -> None:
    judge = StubJudge(lambda _: "Score: 5")
    scorer = JudgeScorer(judge, template="{response} {reference}")
    bad = candidates(["a"], reference=reference)[0]
    good = Candidate("ask", "b", "rows:1", {"reference": "c"})
    with pytest.raises(UnscoredError, match=f"rows:0: {says}") as caught:
        scorer.score([bad, good])
    assert caught.value.found[1] == 5.0
    assert judge.asked == ["b c"]


@pytest.mark.parametrize(
    ("reference", "asked"),
    [(42, "42"), (0, "0"), (0.5, "0.5"), ([{"role": "assistant", "content": "a cat"}], "a cat")],
)
def test_references_are_texts_numbers_or_messages(reference: object, asked: str) -> None:
    judge = StubJudge(lambda _: "Score: 5")
    scorer = JudgeScorer(judge, template="{response} {reference}")
    assert scorer.score(candidates(["a"], reference=reference)) == [5.0]
    assert judge.asked == [f"a {asked}"]


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


def cut(text: str | None, reason: str) -> list[dict[str, Any]]:
    message = {"role": "assistant", "content": text}
    return [{"index": 0, "message": message, "finish_reason": reason}]


@pytest.mark.parametrize(
    ("status", "reply", "says"),
    [
        (400, "maximum context length is 8 tokens", "refuses it .*context length is 8"),
        (422, "content policy", "refuses it .*content policy"),
        (200, cut("Score: 9 of which", "length"), "was cut at the endpoint's limit.*Raise"),
        (200, cut(None, "length"), "was cut at the endpoint's limit"),
        (200, cut(None, "content_filter"), "no answer .*content_filter"),
        (200, cut("Score: 9", "content_filter"), "no answer .*content_filter"),
        (200, [], "no choices"),
        (200, None, "no choices"),
    ],
)
def test_a_text_that_the_endpoint_does_not_take_has_no_score_and_the_others_have(
    monkeypatch: pytest.MonkeyPatch, status: int, reply: Any, says: str
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "any")

    def answer(asked: dict[str, Any]) -> tuple[int, Any]:
        return (status, reply) if "bad" in asked["messages"][0]["content"] else (200, "Score: 4")

    with endpoint(answer) as (url, _):
        scorer = JudgeScorer(EndpointJudge(url, "m"), template="{response}")
        with pytest.raises(UnscoredError, match=f"rows:1: the judge's .*{says}") as caught:
            scorer.score(candidates(["good", "bad", "fine"]))
    assert (caught.value.found[0], caught.value.found[2]) == (4.0, 4.0)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_any_text_stops(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with endpoint(lambda _: (status, "no")) as (url, _), pytest.raises(InputError, match="`judge`"):
        JudgeScorer(EndpointJudge(url, "m")).score(candidates(["a"]))


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


def test_an_answer_that_a_local_judge_does_not_end_is_none(tmp_path: Path) -> None:
    judge = LocalJudge(
        save_tiny(tmp_path / "judge", chat=True), device="cpu", batch_size=3, max_new_tokens=4
    )
    chats = [[{"role": "user", "content": text}] for text in ("a", "what is it. a cat", "no no")]
    judge.model.generation_config.eos_token_id = None
    judge.tokenizer.eos_token = None
    unended = judge.answer(chats)
    assert all(isinstance(one, Unanswered) for one in unended)
    with pytest.raises(UnscoredError, match=r"cut at 4 tokens.*judge_max_new_tokens"):
        JudgeScorer(judge, template="{response}").score(candidates(["a"]))
    # Any token ends an answer.
    judge.model.generation_config.eos_token_id = list(range(64))
    assert all(isinstance(one, str) for one in judge.answer(chats))


def test_a_question_that_does_not_fit_a_local_judge_is_named(tmp_path: Path) -> None:
    judge = LocalJudge(save_tiny(tmp_path / "judge", chat=True), device="cpu", max_new_tokens=8)
    limit = judge.model.config.max_position_embeddings
    short = [{"role": "user", "content": "a cat"}]
    long = [{"role": "user", "content": "a " * limit}]
    alone = judge.answer([short])
    answers = judge.answer([long, short, long])
    assert [answers[1]] == alone
    assert all(isinstance(answers[n], Unanswered) for n in (0, 2))
    with pytest.raises(UnscoredError, match=rf"has {limit} positions.*judge_max_new_tokens"):
        JudgeScorer(judge, template="{response}").score(candidates(["a " * limit]))
    judge.max_new_tokens = limit
    assert isinstance(judge.answer([short])[0], Unanswered)


def test_a_local_judge_needs_a_chat_template(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chat template"):
        LocalJudge(save_tiny(tmp_path / "judge"), device="cpu")
