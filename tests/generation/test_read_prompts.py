"""What of a record stays beside new responses, and what they replace."""

from __future__ import annotations

from typing import Any

import pytest

from rao_kernels.data import load_records
from rao_kernels.errors import DataError, InputError
from rao_kernels.generation import read_prompts, refuse_responses

TURNS = [{"role": "user", "content": "a"}]


def test_a_prompt_alone_keeps_all_its_columns() -> None:
    row = {"prompt": "a", "gold": "g", "label": 3, "answer": "x", "ref_rewards": [1.0], "n": None}
    (found,) = read_prompts([row])
    assert found.columns == row
    assert found.replaced == []
    refuse_responses([found])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "responses": ["b"], "rewards": [1.0], "more": 1, "finished": [True]},
        {
            "prompt": "a",
            "chosen": "b",
            "rejected": "c",
            "score_chosen": 1.0,
            "score_rejected": 0,
            "more": 1,
        },
        {
            "chosen": [*TURNS, {"role": "assistant", "content": "b"}],
            "rejected": [*TURNS, {"role": "assistant", "content": "c"}],
            "more": 1,
        },
        {"messages": [*TURNS, {"role": "assistant", "content": "b"}], "more": 1},
        {"prompt": "a", "completion": "b", "label": True, "more": 1},
        {"instruction": "a", "output": "b", "system": "be brief", "more": 1},
        {"prompt": "a", "response": "b", "helpfulness": 1, "more": 1},
    ],
    ids=["native", "pair", "conversations", "messages", "unpaired", "alpaca", "helpsteer"],
)
def test_responses_go_and_the_rest_stays(row: dict[str, Any]) -> None:
    (found,) = read_prompts([row])
    assert found.columns["prompt"] == found.record.prompt
    assert found.columns["more"] == 1 or found.columns["more"] == [1]
    answers = {"responses", "chosen", "messages", "completion", "output", "response"}
    assert not answers & set(found.columns)
    assert found.record.responses
    with pytest.raises(InputError, match="row 0 has "):
        refuse_responses([found])
    # What generate writes is read by the next command.
    written = {**found.columns, "responses": ["d"], "rewards": [0.5]}
    assert load_records([written])[0].prompt == found.record.prompt


def test_bad_records_and_none() -> None:
    with pytest.raises(DataError, match="row 1: `prompt` is empty"):
        read_prompts([{"prompt": "a"}, {"prompt": ""}])
    with pytest.raises(DataError, match="row 0: a record must be an object"):
        read_prompts(["a.jsonl", 3][1:])
    with pytest.raises(DataError, match="holds no usable record"):
        read_prompts([])
    with pytest.raises(InputError, match="limit"):
        read_prompts([{"prompt": "a"}], limit=0)
    assert len(read_prompts([{"prompt": "a"}, {"prompt": ""}], limit=1)) == 1
