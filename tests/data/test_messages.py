"""Nothing of a conversation is lost: the prompt of a row, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from rao_kernels.data import DataReport, TokenizeOptions, load_records, tokenize_records
from rao_kernels.errors import DataError
from tests.train.tiny import tiny_tokenizer


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "be brief"}
MORE = [assistant("a"), user("more")]


def pair(prompt: Any, turns: list[dict[str, Any]]) -> dict[str, Any]:
    answers = {"chosen": [*turns, assistant("x")], "rejected": [*turns, assistant("y")]}
    return answers if prompt is None else {"prompt": prompt, **answers}


def native(prompt: Any, turns: list[dict[str, Any]]) -> dict[str, Any]:
    responses = [[*turns, assistant("x")], [*turns, assistant("y")]]
    row = {"responses": responses, "rewards": [1.0, 0.0]}
    return row if prompt is None else {"prompt": prompt, **row}


@pytest.mark.parametrize("shape", [pair, native])
@pytest.mark.parametrize(
    ("prompt", "turns", "expected"),
    [
        ([SYSTEM], [user("q")], [SYSTEM, user("q")]),
        ([user("q"), assistant("a")], [user("more")], [user("q"), *MORE]),
        (None, [SYSTEM, user("q")], [SYSTEM, user("q")]),
        ([], [user("q")], [user("q")]),
        ("", [user("q")], [user("q")]),
        ([user("q")], [], [user("q")]),
        ("q", [], "q"),
        # The prompt is in the answers already.
        ("q", [user("q")], [user("q")]),
        ("q", [user("q\n")], [user("q\n")]),
        ("q", [SYSTEM, user("q")], [SYSTEM, user("q")]),
        ("q", [user("q"), *MORE], [user("q"), *MORE]),
        ("more", [user("q"), *MORE], [user("q"), *MORE]),
        ([user("q")], [user("q")], [user("q")]),
        ([user("q")], [user("q"), *MORE], [user("q"), *MORE]),
        ([user("q")], [user("q") | {"name": None}], [user("q")]),
    ],
)
def test_whole_prompt(shape: Any, prompt: Any, turns: list[dict[str, Any]], expected: Any) -> None:
    (record,) = load_records([shape(prompt, turns)])
    assert record.prompt == expected
    assert record.responses == ["x", "y"]


@pytest.mark.parametrize("shape", [pair, native])
@pytest.mark.parametrize(
    ("prompt", "turns", "problem"),
    [
        ("other", [user("q")], "`prompt` is the text 'other'"),
        ("be brief", [SYSTEM, user("q")], "`prompt` is the text 'be brief'"),
        ([SYSTEM, user("q")], [user("q")], "the last 1 of `prompt` are the first turns"),
        ([SYSTEM, user("q"), *MORE], [user("q"), *MORE], "the last 3 of `prompt`"),
        ([user("q"), assistant("a")], [], "ends with an assistant turn"),
        (None, [], "`prompt` is missing"),
    ],
)
def test_a_prompt_that_cannot_be_joined_is_named(
    shape: Any, prompt: Any, turns: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(DataError, match=f"row 1: .*{problem}"):
        load_records([pair("q", []), shape(prompt, turns)])


def test_answers_to_different_prompts_are_named() -> None:
    row = pair(None, [user("q"), *MORE])
    for other in (["y"], [user("r"), assistant("y")], [user("q"), assistant("a"), user("less")]):
        rejected = "y" if other == ["y"] else [*other, assistant("y")]
        with pytest.raises(DataError, match="`chosen` and `rejected` answer different prompts"):
            load_records([row | {"rejected": rejected}])
    row = native([user("q")], [user("more")])
    with pytest.raises(DataError, match=r"`responses\[0\]` and `responses\[1\]` answer different"):
        load_records([row | {"responses": [row["responses"][0], "y"]}])


GOOD = {"prompt": "p", "responses": ["a", "b"], "rewards": [1, 0.5]}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
LOST = {
    "`functions`": GOOD | {"functions": [{"name": "search"}]},
    "`images`": PAIR | {"images": ["a.png"]},
    "`history`": GOOD | {"history": [["q", "a"]]},
    "the system turn 'be kind' beside another, 'be brief'": pair(
        [{"role": "system", "content": "be kind"}, user("q")], []
    )
    | {"system": "be brief"},
    "`chat_template_kwargs`": PAIR | {"chat_template_kwargs": {"enable_thinking": False}},
    "`rewards` beside `chosen`": PAIR | {"rewards": [1, 0]},
    "`responses` beside `chosen`": GOOD | PAIR,
    r"prompt\[0\] has tool_calls, and its role is 'user'": GOOD
    | {"prompt": [user("q") | {"tool_calls": [{"function": {}}]}]},
    r"prompt\[0\] has 'weight'": GOOD | {"prompt": [user("q") | {"weight": 1}]},
    r"prompt\[0\] is a list of parts": GOOD | {"prompt": [user("") | {"content": [{"type": "x"}]}]},
    r"responses\[1\]\[0\] is a dict of parts": GOOD
    | {"responses": ["a", [assistant("") | {"content": {"text": "b"}}]]},
}


@pytest.mark.parametrize("name", LOST)
def test_what_would_be_lost_is_refused_by_name(name: str) -> None:
    with pytest.raises(DataError, match=f"row 1: .*{name}"):
        load_records([GOOD, LOST[name]])
    report = DataReport()
    assert len(load_records([GOOD, LOST[name]], bad_rows="skip", report=report)) == 1
    assert len(report.skipped) == 1


def test_what_says_nothing_and_what_is_no_input_is_allowed() -> None:
    message = user("q") | {"tool_calls": None, "name": None}
    rows = [
        GOOD | {"prompt": [message], "tools": None, "images": [], "system": ""},
        GOOD | {"id": 3, "source": {"url": "x"}, "scores": [float("nan")], "tags": ["a"]},
        GOOD | {"chosen": None, "rejected": None},
        PAIR | {"responses": None, "rewards": None},
    ]
    assert [record.prompt for record in load_records(rows)] == [[user("q")], "p", "p", "p"]


STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate:\\n' + m['role']) }}{% endif %}"
    "{{ '<u>' + m['content'] + '</s>' }}{% endfor %}"
)


def test_what_a_template_refuses_is_a_bad_row() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = STRICT
    rows = [pair([user("q")], []), pair([user("q")], [user("r")]), pair(None, [user("q"), *MORE])]
    records = load_records(rows)
    with pytest.raises(DataError, match="row 1: .*template.*roles must alternate: user"):
        tokenize_records(records, tokenizer, TokenizeOptions())
    report = DataReport()
    kept = tokenize_records(records, tokenizer, TokenizeOptions(), bad_rows="skip", report=report)
    assert [row.where for row in kept] == ["row 0", "row 2"]
    assert len(report.skipped) == 1
    assert report.skipped[0].startswith("row 1: ")


def test_what_a_tokenizer_refuses_is_a_bad_row() -> None:
    class Fussy:
        """The tiny tokenizer, which fails on one letter."""

        def __init__(self) -> None:
            self.inner = tiny_tokenizer()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, texts: list[str], **kwargs: Any) -> Any:
            if any("z" in text for text in texts):
                raise KeyError("z")
            return self.inner(texts, **kwargs)

    fussy: Any = Fussy()
    records = load_records([GOOD, GOOD | {"prompt": "zoo"}])
    with pytest.raises(DataError, match="row 1: .*tokenizer.*KeyError"):
        tokenize_records(records, fussy, TokenizeOptions())
    report = DataReport()
    kept = tokenize_records(records, fussy, TokenizeOptions(), bad_rows="skip", report=report)
    assert (len(kept), len(report.skipped)) == (1, 1)
