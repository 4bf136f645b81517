"""What a record holds beside its prompt, responses and rewards: read as it is, or named."""

from __future__ import annotations

from typing import Any

import datasets
import numpy
import pytest

from rao_kernels.data import DataReport, SampledTokens, load_records
from rao_kernels.errors import DataError
from tests.data.shape_rows import CALL, NO, RESULT, SYSTEM, USER, YES, Row, turn

PAIR: Row = {"prompt": "q", "chosen": "x", "rejected": "y"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"x": {"type": "int"}}}}]
SAMPLED = {
    "prompt_ids": [1, 2],
    "response_ids": [[3, 4], [5]],
    "old_logps": [[-0.5, -1.0], [-2.0]],
}
ALL: Row = {
    **PAIR,
    "gold": "z",
    "gold_reward": 2,
    "ref_rewards": [0.5, 1, 2],
    "reward_ensemble": [[1.0, 0.0], [0.5, 0.25], [3, 4]],
    "tools": TOOLS,
    **SAMPLED,
}


@pytest.mark.parametrize("source", ["list", "dataset", "frame", "arrays"])
def test_each_field_is_read_as_it_is(source: str) -> None:
    table = datasets.Dataset.from_list([ALL])
    arrays = {**ALL, "ref_rewards": numpy.array([0.5, 1, 2]), "prompt_ids": numpy.array([1, 2])}
    sources: dict[str, Any] = {"list": [ALL], "dataset": table, "frame": table.to_pandas()}
    (record,) = load_records(sources.get(source, [arrays]))
    assert (record.prompt, record.responses, record.preferred) == ("q", ["x", "y"], [True, False])
    assert (record.gold, record.gold_reward) == ("z", 2.0)
    assert record.ref_rewards == [0.5, 1.0, 2.0]
    assert record.reward_ensemble == [[1.0, 0.0], [0.5, 0.25], [3.0, 4.0]]
    assert record.tools == TOOLS
    assert record.sampled == SampledTokens([1, 2], [[3, 4], [5]], [[-0.5, -1.0], [-2.0]])
    assert record.rewards is None


def test_fields_are_none_where_they_are_absent() -> None:
    for row in (PAIR, PAIR | dict.fromkeys(ALL.keys() - PAIR.keys())):
        (record,) = load_records([row])
        found = (record.gold, record.gold_reward, record.ref_rewards, record.reward_ensemble)
        assert (*found, record.tools, record.sampled) == (None,) * 6


BAD_FIELDS: dict[str, Row] = {
    "`gold` must be a text": {"gold": 3},
    "`gold` must begin with an assistant's": {"gold": [USER, YES]},
    "`gold_reward` is 'high', not a finite number": {"gold_reward": "high"},
    "`ref_rewards` must be a list": {"ref_rewards": 1.0},
    "number of `ref_rewards` 1 is nan": {"ref_rewards": [1.0, float("nan")]},
    r"`reward_ensemble\[1\]` has 1 values for 2 responses": {"reward_ensemble": [[1, 2], [3]]},
    r"`reward_ensemble\[0\]` must be a list": {"reward_ensemble": [1.0, 2.0]},
    "`tools` must be a list, got a text that is not": {"tools": "search"},
    r"`tools\[0\]` is not an object, got 'search'": {"tools": ["search"]},
    "`tools` is not JSON": {"tools": [{"f": {1, 2}}]},
    "`prompt_ids` without `response_ids`": {"prompt_ids": [1]},
    "`response_ids` without `prompt_ids`": {"response_ids": [[1], [2]]},
    "`old_logps` without `prompt_ids`": {"old_logps": [[0.0], [0.0]]},
    "`response_ids` has 1 values for 2 responses": SAMPLED | {"response_ids": [[3]]},
    "`old_logps` has 1 values for 2 responses": SAMPLED | {"old_logps": [[3]]},
    r"`old_logps\[0\]` has 1 values for 2 tokens": SAMPLED | {"old_logps": [[-1.0], [-1.0]]},
    r"number of `old_logps\[1\]` 0 is None": SAMPLED | {"old_logps": [[-1.0, 0], [None]]},
    r"`response_ids\[1\]` holds -1": SAMPLED | {"response_ids": [[3, 4], [-1]]},
    "`prompt_ids` holds 1.5": SAMPLED | {"prompt_ids": [1.5]},
    "`prompt_ids` holds True": SAMPLED | {"prompt_ids": [True]},
    "`prompt_ids` must be a list of token ids": SAMPLED | {"prompt_ids": "12"},
}


@pytest.mark.parametrize("problem", BAD_FIELDS)
def test_a_bad_field_is_named(problem: str) -> None:
    rows = [PAIR, PAIR | BAD_FIELDS[problem]]
    with pytest.raises(DataError, match=f"row 1: .*{problem}"):
        load_records(rows)
    report = DataReport()
    assert len(load_records(rows, bad_rows="skip", report=report)) == 1
    assert len(report.skipped) == 1


def test_messages_keep_what_a_template_reads() -> None:
    think = {**YES, "reasoning_content": "because"}
    null = {**CALL, "content": None}
    named = {**USER, "name": "Ann", "tool_calls": None, "tool_call_id": ""}
    rows = [
        {"prompt": [named], "chosen": [null, RESULT, think], "rejected": [NO]},
        {"prompt": "q", "chosen": [think], "rejected": "no"},
        {"prompt": "q", "chosen": [null], "rejected": [NO], "tools": TOOLS},
    ]
    first, second, third = load_records(rows)
    assert first.prompt == [{**USER, "name": "Ann"}]
    assert first.responses == [[CALL, RESULT, think], "no"]
    # A text prompt beside a conversation is the user's turn.
    assert (second.prompt, second.responses) == ([USER], [[think], "no"])
    assert (third.prompt, third.responses) == ([USER], [[CALL], "no"])


BAD_MESSAGES: dict[str, Row] = {
    "tool_calls, and its role is 'user'": {**USER, "tool_calls": CALL["tool_calls"]},
    r"tool_calls\[0\]` is not an object": {**YES, "tool_calls": ["f"]},
    "tool_calls` must be a list": {**YES, "tool_calls": {"name": "f"}},
    "tool_calls` is not JSON": {**YES, "tool_calls": [{1: 2}]},
    "name` must be a text": {**YES, "name": 7},
    "'thoughts', and only role, content,": {**YES, "thoughts": "x"},
    "not a message with the texts": {"role": "assistant", "reasoning_content": "x"},
}


@pytest.mark.parametrize("problem", BAD_MESSAGES)
def test_a_bad_message_is_named(problem: str) -> None:
    with pytest.raises(DataError, match=f"row 0: .*{problem}"):
        load_records([{"prompt": [BAD_MESSAGES[problem]], "chosen": "x", "rejected": "y"}])


def test_a_system_column_becomes_the_system_turn() -> None:
    native = {"responses": ["x"], "rewards": [1]}
    cases: list[tuple[Any, Any]] = [
        ("q", [SYSTEM, USER]),
        ([USER], [SYSTEM, USER]),
        ([SYSTEM, USER], [SYSTEM, USER]),
        (None, "`prompt` is missing"),
        ([turn("system", "be kind"), USER], "beside another"),
    ]
    for column in ("system", "system_prompt"):
        for prompt, expected in cases:
            row = native | {"prompt": prompt, column: SYSTEM["content"]}
            if isinstance(expected, str):
                with pytest.raises(DataError, match=f"row 0: .*{expected}"):
                    load_records([row])
            else:
                assert load_records([row])[0].prompt == expected


@pytest.mark.parametrize(
    ("generator", "expected"),
    [
        (None, 1.0),
        ("a model's name", 1.0),
        ({"model": "m"}, 1.0),
        ({"temperature": 0.7}, 0.7),
        ({"temperature": 0.7, "logp_temperature": 1.0}, 1.0),
        ({"temperature": 1.0, "logp_temperature": 0.5}, 0.5),
    ],
)
def test_temperature_of_old_logps_is_the_generators(generator: Any, expected: float) -> None:
    (record,) = load_records([PAIR | SAMPLED | {"generator": generator}])
    assert record.sampled is not None
    assert record.sampled.logp_temperature == expected


@pytest.mark.parametrize(
    ("finished", "expected"),
    [
        (None, None),
        ([True, True], None),
        ([True, False], [True, False]),
        ("yes", None),
        (False, None),
        ([True], "`finished` has 1 values for 2 responses"),
        (["yes", "no"], "`finished` must hold true or false"),
    ],
)
def test_which_responses_are_finished(finished: Any, expected: Any) -> None:
    row = {"prompt": "q", "responses": ["a", "b"], "rewards": [1, 0], "finished": finished}
    if isinstance(expected, str):
        with pytest.raises(DataError, match=f"row 0: {expected}"):
            load_records([row])
    else:
        assert load_records([row])[0].finished == expected
