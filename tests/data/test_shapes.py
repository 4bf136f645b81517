"""Records of every public shape load as they are; what is ambiguous or would be lost is named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from rao_kernels.data import (
    DataReport,
    ShapeOptions,
    iter_raw,
    iter_records,
    load_records,
    parse_record,
)
from rao_kernels.data.shapes import SHAPES
from rao_kernels.errors import DataError, InputError
from tests.data.shape_rows import CASES, SYSTEM, TALK, USER, YES, Case, Row, turn

IDS = [f"{number}_{case.shape}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_each_shape_loads_as_it_is(case: Case) -> None:
    report = DataReport()
    (record,) = load_records([case.row], report=report)
    assert record.prompt == case.prompt
    assert record.responses == case.responses
    assert record.rewards == case.rewards
    assert record.preferred == case.preferred
    assert dict(report.shapes) == {case.shape: 1}
    assert f"shapes: {case.shape} 1" in report.describe()
    assert parse_record("row 0", case.row) == record
    assert parse_record("row 0", case.row, ShapeOptions(shape=case.shape)) == record


def test_each_shape_has_a_case() -> None:
    assert {case.shape for case in CASES} == {shape.name for shape in SHAPES} - {"prompt"}


def test_rows_shown_in_the_table_survive_a_dataset_and_a_file(tmp_path: Path) -> None:
    """Columns that other rows lack are None there; the shapes are told by what is given."""
    texts = [case for case in CASES if all(isinstance(v, (str, float)) for v in case.row.values())]
    assert len(texts) >= 8
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(case.row) + "\n" for case in texts))
    names = dict.fromkeys(name for case in texts for name in case.row)
    table = datasets.Dataset.from_list([dict.fromkeys(names) | case.row for case in texts])
    for source in (path, table, table.to_iterable_dataset()):
        report = DataReport()
        records = load_records(source, report=report)
        assert [record.responses for record in records] == [case.responses for case in texts]
        assert [record.prompt for record in records] == [case.prompt for case in texts]
        assert [record.rewards for record in records] == [case.rewards for case in texts]
        assert report.shapes == Counter(case.shape for case in texts)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_each_shape_survives_arrow(case: Case) -> None:
    (record,) = load_records(datasets.Dataset.from_list([case.row]).to_pandas())
    assert (record.prompt, record.rewards, record.preferred) == (
        case.prompt,
        case.rewards,
        case.preferred,
    )
    assert record.responses == case.responses


@pytest.mark.parametrize("case", [case for case in CASES if case.prompt])
def test_a_record_written_with_its_own_columns_is_the_same(case: Case) -> None:
    """A command that writes what it read leaves nothing to the next one's judgement."""
    record = parse_record("row 0", case.row)
    columns = {"prompt": record.prompt, "responses": record.responses, "rewards": record.rewards}
    again = parse_record("row 0", {**columns, "tools": record.tools})
    assert (again.prompt, again.responses) == (record.prompt, record.responses)
    assert (again.rewards, again.tools) == (record.rewards, record.tools)


PAIR = {"prompt": "q", "chosen": "x", "rejected": "y"}
NATIVE = {"prompt": "q", "responses": ["x", "y"], "rewards": [1.0, 0.0]}
RATED = {"prompt": "q", "response": "x", "helpfulness": 3, "correctness": 4}
FEEDBACK = next(case.row for case in CASES if case.shape == "ultrafeedback")
NECTAR = next(case.row for case in CASES if case.shape == "nectar")
HELPSTEER3 = next(case.row for case in CASES if case.shape == "helpsteer3")


def one(row: Row, **options: Any) -> Any:
    return parse_record("row 7", row, ShapeOptions(**options))


def test_rewards_of_labels_and_ranks_are_given_only_if_asked_for() -> None:
    for case in CASES:
        asked = one(case.row, label_rewards=(2.0, -1.0))
        if case.rewards is not None or case.preferred is None:
            assert asked.rewards == case.rewards
        else:
            assert asked.rewards == [2.0 if mark else -1.0 for mark in case.preferred]
    assert one(NECTAR, rank_rewards=True).rewards == [-2.0, -1.0]
    assert one(NECTAR, rank_rewards=True).preferred == [False, True]
    assert one(PAIR, rank_rewards=True).rewards is None


def test_weights_of_several_scores() -> None:
    assert one(RATED, weights={"helpfulness": 0.5, "correctness": 2.0}).rewards == [9.5]
    assert one(FEEDBACK, weights={"fine-grained_score": 1.0}).rewards == [4.5, 1.25]
    with pytest.raises(DataError, match=r"row 7: completions\[1\].*honesty.Rating is 'N/A', not"):
        one(FEEDBACK, weights={"honesty": 1.0})
    rated = {**FEEDBACK, "completions": FEEDBACK["completions"][:1]}
    assert one(rated, weights={"honesty": 1.0, "overall_score": 2.0}).rewards == [22.0]
    with pytest.raises(DataError, match="neither a score nor an aspect 'charm'"):
        one(FEEDBACK, weights={"charm": 1.0})
    with pytest.raises(DataError, match="`charm` is None"):
        one(RATED, weights={"charm": 1.0})


def test_columns_are_renamed() -> None:
    row = {"ask": "q", "good": "x", "bad": "y", "prompt": "unused"}
    names = {"ask": "prompt", "good": "chosen", "bad": "rejected"}
    assert one(row, columns=names).prompt == "q"
    ((columns, record),) = iter_raw([row], options=ShapeOptions(columns=names))
    assert columns == PAIR
    assert record.responses == ["x", "y"]
    with pytest.raises(DataError, match="row 7: no column 'answer', which `columns` renames"):
        one(row, columns={"answer": "chosen"})
    safer = next(case.row for case in CASES if case.shape == "safe_rlhf")
    swapped = one(safer, columns={"safer_response_id": "better_response_id"})
    assert swapped.preferred == [True, False]
    assert one({**PAIR, "margin": "large"}, columns={"margin": "unused"}).margin is None
    assert one({**PAIR, "margin": 0.5}).margin == 0.5


def test_a_shape_can_be_forced() -> None:
    """The scored samples of a pair of them, or the pair."""
    row = next(case.row for case in CASES if case.shape == "all_generated_responses")
    assert len(one(row).responses) == 3
    forced = one(row, shape="pair")
    assert (forced.responses, forced.preferred) == (["y", "x"], [True, False])
    with pytest.raises(DataError, match="row 7: the shape nectar has the columns prompt, answers"):
        one(row, shape="nectar")


def test_options_are_checked() -> None:
    bad: dict[str, Any] = {
        "shape": "nonsense",
        "label_rewards": (1.0, float("nan")),
        "weights": {},
    }
    for name, value in bad.items():
        with pytest.raises(InputError, match=f"`{name}`"):
            ShapeOptions(**{name: value})
    with pytest.raises(InputError, match="label_rewards"):
        ShapeOptions(label_rewards=(1.0,))  # type: ignore[arg-type]


REFUSED = {
    "`margin` is 'large'": {**PAIR, "margin": "large"},
    "`overall_preference` is 0": {**HELPSTEER3, "overall_preference": 0},
    "`context` would be ignored": {**PAIR, "context": "a text"},
    "`history` would be ignored": {"prompt": "q", "completion": "x", "history": [["a", "b"]]},
    "`prompt` beside `text`": {"prompt": "q", "text": "x"},
    "`text` has no prompt, and a system turn": {"text": "x", "system": "be brief"},
    "`messages` has no assistant's message": {"messages": [USER]},
    "`messages` begins with an assistant's": {"messages": [YES]},
    "`prompt` is 'other', and `messages` begins": {"prompt": "other", "messages": [USER, YES]},
    "`messages` must be a text or one assistant": {"messages": [USER, YES, USER]},
    r"conversations\[0\] is from 'narrator'": {
        "conversations": [{"from": "narrator", "value": "x"}]
    },
    "`label` is 'True', not true or false": {"prompt": "q", "completion": "x", "label": "True"},
    "`better_response_id` is 2": {
        "prompt": "q",
        "response_0": "x",
        "response_1": "y",
        "better_response_id": 2,
    },
    "no shape of records has its columns": {"request": "q"},
    "has a prompt and no responses": {"prompt": "q"},
    r"answers\[0\].rank is None": {"prompt": "q", "answers": [{"answer": "x", "rank": None}]},
    r"`completions\[0\]` has no `response`": {"instruction": "q", "completions": [{"text": "x"}]},
    "2 responses but 1 rewards": {"instruction": "q", "generations": ["x", "y"], "rating": [1]},
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_cannot_be_read_is_named(problem: str) -> None:
    with pytest.raises(DataError, match=rf"row 1: .*{problem}"):
        load_records([PAIR, REFUSED[problem]])
    report = DataReport()
    assert len(load_records([PAIR, REFUSED[problem]], bad_rows="skip", report=report)) == 1
    assert len(report.skipped) == 1


def test_a_damaged_transcript_is_named() -> None:
    good = "\n\nHuman: a\n\nAssistant: b"
    for chosen in ("Human:", "Human: a\n\nHuman: c", "\n\nHuman: c\n\nAssistant: b"):
        with pytest.raises(DataError, match="row 7: "):
            one({"chosen": chosen, "rejected": good})


def test_transcripts_may_part_early() -> None:
    start = "\n\nHuman: a\n\nAssistant: "
    row = {"chosen": f"{start}x\n\nHuman: c\n\nAssistant: z", "rejected": f"{start}y"}
    record = one(row)
    assert record.prompt == [turn("user", "a")]
    answer = [turn("assistant", "x"), turn("user", "c"), turn("assistant", "z")]
    assert record.responses == [answer, "y"]


def rated(prompt: str, response: str, score: int, **more: Any) -> Row:
    return {"prompt": prompt, "response": response, "helpfulness": score, **more}


GROUPED = [
    rated("a", "x", 1, id=1),
    rated("a", "y", 2, id=2),
    rated("b", "x", 3, id=3),
    {"prompt": "b", "completion": "alone"},
    rated("b", "y", 4, id=4),
    rated("a", "z", 5, id=5, system="be brief"),
    rated("a", "w", 6, id=6),
]


def test_consecutive_records_of_one_prompt_are_one(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in GROUPED))
    pairs = list(iter_raw(path))
    assert [(r.prompt, r.responses, r.rewards) for _, r in pairs] == [
        ("a", ["x", "y"], [1.0, 2.0]),
        ("b", ["x"], [3.0]),
        ("b", ["alone"], None),
        ("b", ["y"], [4.0]),
        ([SYSTEM, turn("user", "a")], ["z"], [5.0]),
        ("a", ["w"], [6.0]),
    ]
    assert [r.where for _, r in pairs] == [f"{path}:{n}" for n in (1, 3, 4, 5, 6, 7)]
    assert pairs[0][0] == {
        "prompt": "a",
        "response": ["x", "y"],
        "helpfulness": [1, 2],
        "id": [1, 2],
    }
    assert pairs[2][0] == GROUPED[3]
    assert len(load_records(path, limit=1)[0].responses) == 2


def test_a_bad_record_does_not_take_its_group_with_it() -> None:
    rows = [rated("a", "x", 1), {**rated("a", "y", 2), "helpfulness": "2"}, rated("a", "z", 3)]
    report = DataReport()
    (record,) = load_records(rows, bad_rows="skip", report=report)
    assert record.responses == ["x", "z"]
    assert [note.split(": ")[0] for note in report.skipped] == ["row 1"]


def test_records_are_read_as_they_are_asked_for() -> None:
    read = []

    def rows() -> Any:
        for number in range(5):
            read.append(number)
            yield PAIR

    records = iter_records(rows())
    assert read == []
    next(records)
    assert read == [0]


def test_prompts_alone_are_read_where_no_response_is_required() -> None:
    options = ShapeOptions(responses_required=False)
    rows: list[Row] = [
        {"prompt": "q", "answer": "7"},
        {"prompt": [SYSTEM, USER]},
        {"messages": [*TALK]},
        {"messages": [USER, YES]},
        {"instruction": "add", "input": "1 2"},
        {"prompt": "q", "responses": [], "system": "be brief"},
        PAIR,
    ]
    records = load_records(rows, options=options)
    assert [(r.prompt, r.responses, r.rewards, r.preferred) for r in records] == [
        ("q", [], None, None),
        ([SYSTEM, USER], [], None, None),
        (TALK, [], None, None),
        ([USER], ["yes"], None, None),
        ("add\n1 2", [], None, None),
        ([SYSTEM, turn("user", "q")], [], None, None),
        ("q", ["x", "y"], None, [True, False]),
    ]
    ((columns, _),) = iter_raw(rows[:1], options=options)
    assert columns["answer"] == "7"
    with pytest.raises(DataError, match="row 0: `prompt` is empty"):
        load_records([{"prompt": ""}], options=options)


def test_repeated_records_and_prompts_are_counted() -> None:
    other = {**PAIR, "chosen": "z"}
    rows = [PAIR, {**PAIR, "prompt": "r"}, PAIR, other, PAIR, {"text": "t"}, {**NATIVE}]
    report = DataReport()
    assert len(load_records(rows, report=report)) == len(rows)
    assert (report.duplicates, report.repeated_prompts) == (2, 1)
    assert "2 records that repeat another one" in report.describe()
    assert "1 prompts that occur in several records" in report.describe()
    assert "7 records read; shapes: pair 5, " in report.describe()
    assert "repeat" not in DataReport().describe()
