"""One record of every shape, as the public data sets hold it, and what has to come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


def turn(role: str, content: str) -> Row:
    return {"role": role, "content": content}


USER, YES, NO = turn("user", "q"), turn("assistant", "yes"), turn("assistant", "no")
SYSTEM = turn("system", "be brief")
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
}
RESULT = {"role": "tool", "content": "7", "tool_call_id": "a1", "name": "f"}
TALK = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]


@dataclass(frozen=True)
class Case:
    """A record, the name of its shape, and the prompt, responses, rewards and marks of it."""

    shape: str
    row: Row
    prompt: Any
    responses: Any
    rewards: list[float] | None = None
    preferred: list[bool] | None = None


def sharegpt(*turns: tuple[str, str]) -> list[Row]:
    return [{"from": who, "value": text} for who, text in turns]


def completion(text: str, overall: float, fine: float, rating: str) -> Row:
    """A completion of UltraFeedback."""
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    return {
        "model": "m",
        "principle": "honesty",
        "custom_system_prompt": "Be honest.",
        "response": text,
        "annotations": {name: {"Rating": rating, "Rationale": "r"} for name in aspects},
        "critique": "c",
        "fine-grained_score": fine,
        "overall_score": overall,
    }


AB = ["x", "y"]
FIRST, SECOND = [True, False], [False, True]
ATTRIBUTES = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2}

CASES = [
    Case("native", {"prompt": "q", "responses": AB, "rewards": [1, 0.5]}, "q", AB, [1.0, 0.5]),
    Case("unscored", {"prompt": "q", "responses": AB}, "q", AB),
    Case(
        "unscored",
        {"prompt": [USER], "responses": [[CALL, RESULT, YES], [NO]], "tools": '[{"name": "f"}]'},
        [USER],
        [[CALL, RESULT, YES], "no"],
    ),
    Case(
        "all_generated_responses",
        {
            "prompt_id": "1",
            "prompt": "q",
            "all_generated_responses": ["x", "y", "z"],
            "all_rm_scores": [0.1, 0.3, 0.2],
            "chosen": [USER, turn("assistant", "y")],
            "rejected": [USER, turn("assistant", "x")],
        },
        "q",
        ["x", "y", "z"],
        [0.1, 0.3, 0.2],
    ),
    Case(
        "ultrafeedback",
        {
            "source": "s",
            "instruction": "q",
            "models": ["m", "m"],
            "completions": [completion("x", 8.5, 4.5, "5"), completion("y", 2.0, 1.25, "N/A")],
            "correct_answers": ["None"],
        },
        "q",
        AB,
        [8.5, 2.0],
    ),
    Case(
        "nemo_rl",
        {
            "context": [USER],
            "completions": [{"rank": 0, "completion": [YES]}, {"rank": 1, "completion": [NO]}],
            "task_name": "t",
        },
        [USER],
        ["yes", "no"],
        None,
        FIRST,
    ),
    Case(
        "nemo_rl",
        {
            "context": [USER],
            "completions": [
                {"rank": 1, "completion": [YES], "reward": 0.25},
                {"rank": 0, "completion": [NO], "reward": 2.0},
            ],
        },
        [USER],
        ["yes", "no"],
        [0.25, 2.0],
    ),
    Case(
        "distilabel",
        {
            "system": "be brief",
            "input": "q",
            "chosen": "x",
            "rejected": "y",
            "generations": AB,
            "rating": [9.0, 7.0],
        },
        [SYSTEM, USER],
        AB,
        [9.0, 7.0],
    ),
    Case(
        "distilabel",
        {"instruction": "q", "generations": '["x", "y"]', "ratings": "[2, 3.5]"},
        "q",
        AB,
        [2.0, 3.5],
    ),
    Case(
        "nectar",
        {
            "prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: ",
            "answers": [
                {"answer": "x", "model": "m", "rank": 2.0},
                {"answer": "y", "model": "n", "rank": 1.0},
            ],
            "turns": 2,
            "num_responses": 2,
            "good_natured": True,
        },
        TALK,
        AB,
        None,
        SECOND,
    ),
    Case(
        "argilla",
        {
            "source": "s",
            "instruction": "q",
            "chosen_response": "x",
            "rejected_response": "y",
            "chosen_avg_rating": 5.0,
            "rejected_avg_rating": 3.75,
        },
        "q",
        AB,
        [5.0, 3.75],
        FIRST,
    ),
    Case(
        "sharegpt_pair",
        {
            "conversations": sharegpt(("human", "q")),
            "chosen": {"from": "gpt", "value": "x"},
            "rejected": {"from": "gpt", "value": "y"},
            "system": "be brief",
        },
        [SYSTEM, USER],
        AB,
        None,
        FIRST,
    ),
    Case(
        "anthropic_hh",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: x",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: y",
        },
        TALK,
        AB,
        None,
        FIRST,
    ),
    Case("pair", {"prompt": "q", "chosen": "x", "rejected": "y"}, "q", AB, None, FIRST),
    Case(
        "pair",
        {
            "prompt": "q",
            "prompt_id": "1",
            "chosen": [USER, YES],
            "rejected": [USER, NO],
            "messages": [USER, YES],
            "score_chosen": 8.0,
            "score_rejected": 6.5,
        },
        [USER],
        ["yes", "no"],
        [8.0, 6.5],
        FIRST,
    ),
    Case(
        "pair",
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        "The sky is",
        [" blue.", " black."],
        None,
        FIRST,
    ),
    Case(
        "pair",
        {"source": "s", "chosen": [*TALK, YES], "rejected": [*TALK, NO]},
        TALK,
        ["yes", "no"],
        None,
        FIRST,
    ),
    Case(
        "pair",
        {
            "prompt": "q",
            "chosen": [YES],
            "rejected": [NO],
            "chosen-rating": 5,
            "rejected-rating": 4,
        },
        "q",
        ["yes", "no"],
        [5.0, 4.0],
        FIRST,
    ),
    Case(
        "pair",
        {"system": "be brief", "question": "q", "chosen": "x", "rejected": "y"},
        [SYSTEM, USER],
        AB,
        None,
        FIRST,
    ),
    Case(
        "pair",
        {
            "instruction": "add",
            "input": "1 2",
            "chosen": "3",
            "rejected": "4",
            "history": [["a", "b"]],
        },
        [turn("user", "a"), turn("assistant", "b"), turn("user", "add\n1 2")],
        ["3", "4"],
        None,
        FIRST,
    ),
    Case(
        "pair",
        {
            "chosen": [USER, CALL, RESULT, YES],
            "rejected": [USER, CALL, {**RESULT, "content": "8"}, NO],
            "tools": [{"name": "f"}],
        },
        [USER],
        [[CALL, RESULT, YES], [CALL, {**RESULT, "content": "8"}, NO]],
        None,
        FIRST,
    ),
    Case(
        "safe_rlhf",
        {
            "prompt": "q",
            "response_0": "x",
            "response_1": "y",
            "better_response_id": 1,
            "safer_response_id": 0,
            "is_response_0_safe": True,
        },
        "q",
        AB,
        None,
        SECOND,
    ),
    Case(
        "shp",
        {
            "post_id": "p",
            "history": "q",
            "human_ref_A": "x",
            "human_ref_B": "y",
            "labels": 0,
            "score_A": 3,
            "score_B": 40,
        },
        "q",
        AB,
        [3.0, 40.0],
        SECOND,
    ),
    Case(
        "helpsteer3",
        {
            "domain": "general",
            "context": TALK,
            "response1": "x",
            "response2": "y",
            "overall_preference": -2,
        },
        TALK,
        AB,
        None,
        FIRST,
    ),
    Case(
        "helpsteer",
        {"prompt": "q", "response": "x", "helpfulness": 3, **ATTRIBUTES},
        "q",
        ["x"],
        [3.0],
    ),
    Case(
        "helpsteer",
        {
            "prompt": "a\n\n<extra_id_1>Assistant\nb\n\n<extra_id_1>User\nc",
            "response": "x",
            "helpfulness": 0,
            **ATTRIBUTES,
        },
        TALK,
        ["x"],
        [0.0],
    ),
    Case("openrlhf", {"input": "q", "output": "x", "reward": 0.5}, "q", ["x"], [0.5]),
    Case("unpaired", {"prompt": "q", "completion": "x", "label": False}, "q", ["x"], None, [False]),
    Case(
        "unpaired",
        {"prompt": [USER], "completion": [YES], "label": True},
        [USER],
        ["yes"],
        None,
        [True],
    ),
    Case("completion", {"prompt": "q", "completion": "x"}, "q", ["x"]),
    Case(
        "completion",
        {"prompt": [USER], "completion": [CALL, RESULT, YES]},
        [USER],
        [[CALL, RESULT, YES]],
    ),
    Case("alpaca", {"instruction": "q", "input": "", "output": "x"}, "q", ["x"]),
    Case("alpaca", {"instruction": "q", "output": "x", "kto_tag": True}, "q", ["x"], None, [True]),
    Case("messages", {"messages": [SYSTEM, USER, YES]}, [SYSTEM, USER], ["yes"]),
    Case(
        "messages",
        {"prompt": "a", "prompt_id": "1", "messages": [*TALK, YES]},
        [turn("user", "a")],
        [[turn("assistant", "b"), turn("user", "c"), YES]],
    ),
    Case("messages", {"messages": [USER, CALL], "tools": [{"name": "f"}]}, [USER], [[CALL]]),
    Case(
        "sharegpt",
        {
            "id": "1",
            "conversations": sharegpt(("system", "be brief"), ("human", "q"), ("gpt", "x")),
        },
        [SYSTEM, USER],
        ["x"],
    ),
    Case(
        "sharegpt",
        {
            "conversations": sharegpt(
                ("human", "q"),
                ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
                ("observation", "7"),
                ("gpt", "yes"),
            ),
            "tools": '[{"name": "f"}]',
        },
        [USER],
        [[CALL, turn("tool", "7"), YES]],
    ),
    Case("text", {"text": "Once upon a time."}, "", ["Once upon a time."]),
]
