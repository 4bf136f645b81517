"""Boundary, special tokens and lengths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rao_kernels.data import (
    DataReport,
    TokenizedRow,
    TokenizeOptions,
    as_pairs,
    check_shared_start,
    drop_unlabelled,
    load_records,
    mark_preferred,
    shared_start,
    tokenize_records,
)
from rao_kernels.errors import DataError, InputError
from tests.train.tiny import tiny_tokenizer


def tokenize(
    rows: list[dict[str, Any]], tokenizer: Any, report: DataReport | None = None, **options: Any
) -> list[TokenizedRow]:
    records = load_records(rows)
    return tokenize_records(records, tokenizer, TokenizeOptions(**options), report=report)


def row(prompt: Any = "ask", responses: tuple[str, ...] = ("yes", "no")) -> dict[str, Any]:
    return {"prompt": prompt, "responses": list(responses), "rewards": [1.0, 0.0][: len(responses)]}


def test_plain_row_has_bos_and_eos_once() -> None:
    tokenizer = tiny_tokenizer()
    (one,) = tokenize([row()], tokenizer)
    assert tokenizer.decode(one.prompt).replace(" ", "") == "<s>ask"
    assert [tokenizer.decode(r).replace(" ", "") for r in one.responses] == ["yes</s>", "no</s>"]
    (again,) = tokenize([row("<s>ask", ("yes</s>",))], tokenizer)
    assert again.prompt.tolist() == one.prompt.tolist()
    assert again.responses[0].tolist() == one.responses[0].tolist()


def test_chat_row_is_the_template_without_its_last_line_break() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    for prompt in ("ask", [{"role": "user", "content": "ask"}]):
        (one,) = tokenize([row(prompt)], tokenizer)
        assert tokenizer.decode(one.prompt).replace(" ", "") == "<u>ask</s>\n<a>"
        assert tokenizer.decode(one.responses[0]).replace(" ", "") == "yes</s>"
    (plain,) = tokenize([row()], tokenizer, prompt_format="plain")
    assert tokenizer.decode(plain.prompt).replace(" ", "") == "<s>ask"


def test_boundary_is_the_common_prefix_of_all_sequences() -> None:
    """A merge across the boundary moves it left, for every response of the prompt alike."""
    tokenizer = tiny_tokenizer(merges=True)
    (one,) = tokenize([row("xa", ("b", "cd"))], tokenizer)
    assert tokenizer.convert_ids_to_tokens(one.prompt) == ["<s>", "x"]
    assert tokenizer.convert_ids_to_tokens(one.responses[0]) == ["ab", "</s>"]
    assert tokenizer.convert_ids_to_tokens(one.responses[1]) == ["a", "c", "d", "</s>"]


def test_common_start_of_responses_is_not_prompt() -> None:
    (one,) = tokenize([row("x", ("same start", "same end"))], tiny_tokenizer())
    assert len(one.prompt) == 2


def test_too_long_prompt_is_named_and_never_cut() -> None:
    rows = [row(), row("a very long prompt")]
    with pytest.raises(DataError, match=r"row 1: its prompt has 19 tokens.*max_length=12"):
        tokenize(rows, tiny_tokenizer(), max_length=12)
    report = DataReport()
    kept = tokenize_records(
        load_records(rows),
        tiny_tokenizer(),
        TokenizeOptions(max_length=12),
        bad_rows="skip",
        report=report,
    )
    assert len(kept) == 1
    assert "row 1" in report.skipped[0]


def test_too_long_response_is_dropped_or_cut_and_counted() -> None:
    rows = [row("ask", ("yes", "a longer answer"))]
    report = DataReport()
    (one,) = tokenize(rows, tiny_tokenizer(), report, max_length=9)
    assert len(one.responses) == 1
    assert one.rewards == [1.0]
    assert report.responses_dropped == 1
    assert "1 responses dropped" in report.describe()
    report = DataReport()
    (one,) = tokenize(rows, tiny_tokenizer(), report, max_length=9, truncate_responses=True)
    assert [len(response) for response in one.responses] == [4, 5]
    assert report.responses_truncated == 1
    with pytest.raises(DataError, match="none of its 2 responses fits max_length=6"):
        tokenize(rows, tiny_tokenizer(), max_length=6)


def test_a_start_that_is_not_shared_is_named() -> None:
    class NoBos:
        """The tiny tokenizer as one without BOS."""

        def __init__(self) -> None:
            self.inner = tiny_tokenizer()
            self.bos_token_id = None

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    rows = tokenize([row("ask"), row("say"), row("some")], NoBos())
    with pytest.raises(DataError, match=r"row 0: its prompt begins with .* 2 of 3 prompts"):
        check_shared_start(rows, 1)
    check_shared_start(rows[1:], 1)
    with pytest.raises(DataError, match="RAO needs one t0 of 2 tokens"):
        check_shared_start(rows[1:], 2)
    check_shared_start(tokenize([row("ask"), row("say")], tiny_tokenizer()), 1)


def test_pairs() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "responses": ["a", "b", "c"], "rewards": [0.5, 0.0, 1.0]},
        {"prompt": "p", "responses": ["a", "b"], "rewards": [1.0, 1.0]},
        {"prompt": "p", "responses": ["a"], "rewards": [1.0]},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 0, "score_rejected": 1},
    ]
    tokenizer, report = tiny_tokenizer(), DataReport()
    pairs = list(as_pairs(tokenize(rows, tokenizer), report))
    texts = [[tokenizer.decode(r[:-1]) for r in pair.responses] for pair in pairs]
    assert texts == [["c", "b"], ["a", "b"], ["a", "b"]]
    assert [pair.rewards for pair in pairs] == [[1.0, 0.0], None, [0.0, 1.0]]
    assert all(pair.preferred == [True, False] for pair in pairs)
    assert report.rows_without_pair == 2


def marked(rows: list[dict[str, Any]]) -> list[list[bool] | None]:
    return [row.preferred for row in mark_preferred(tokenize(rows, tiny_tokenizer()))]


def test_every_best_response_is_preferred() -> None:
    """Of [1, 1, 0, 1] three are right answers; none of them is to be pushed down."""
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "responses": ["a", "b", "c", "d"], "rewards": [1, 1, 0, 1]},
        {"prompt": "p", "responses": ["a", "b"], "rewards": [0.0, 0.0]},
        {"prompt": "p", "responses": ["a"], "rewards": [0.3]},
        {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 0, "score_rejected": 1},
    ]
    expected = [[True, True, False, True], [True, True], [True], [True, False]]
    assert marked(rows) == expected


def test_rows_whose_rewards_label_nothing_are_dropped_by_name() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "responses": ["a", "b"], "rewards": [0.0, 0.0]},
        {"prompt": "p", "responses": ["a", "b"], "rewards": [0.0, 1.0]},
        {"prompt": "p", "responses": ["a"], "rewards": [1.0]},
        {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 1},
    ]
    report = DataReport()
    kept = list(drop_unlabelled(tokenize(rows, tiny_tokenizer()), report))
    assert [row.where for row in kept] == ["row 1", "row 3"]
    assert report.rows_without_label == ["row 0", "row 2"]
    assert "2 prompts without labels (all rewards equal)" in report.describe().replace("; ", " ")


def test_marks_of_ties_make_no_pair() -> None:
    row = {"prompt": "p", "responses": ["a", "b"], "rewards": [1.0, 1.0]}
    rows = mark_preferred(tokenize([row], tiny_tokenizer()))
    assert list(as_pairs(rows, DataReport())) == []


def test_bad_options() -> None:
    for options in ({"max_length": 1}, {"prompt_format": "raw"}, {"prompt_format": "chat"}):
        with pytest.raises(InputError, match=next(iter(options))):
            tokenize([row()], tiny_tokenizer(), **options)
    with pytest.raises(DataError, match="row 0: a chat prompt"):
        tokenize([row([{"role": "user", "content": "x"}])], tiny_tokenizer())


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (["say one", "say two"], 5),
        (["say", "say two"], 3),
        (["say one", "say one"], 8),
        (["say one"], 8),
        (["say", "ask"], 1),
    ],
)
def test_shared_start(prompts: list[str], expected: int) -> None:
    """BOS and letters. Of different prompts none is covered whole."""
    rows = tokenize([row(prompt) for prompt in prompts], tiny_tokenizer())
    assert shared_start(rows) == expected
    check_shared_start(rows, expected)


def test_nothing_shared() -> None:
    rows = tokenize([row("say"), row("ask")], tiny_tokenizer())
    bare = [replace(one, prompt=one.prompt[1:]) for one in rows]
    assert shared_start(bare) == 0
