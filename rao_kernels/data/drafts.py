"""What a shape finds in a record, before it is checked, and how columns are found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from .messages import Message, as_list, is_absent, parse_text, show, to_python


@dataclass(frozen=True)
class Draft:
    """What a shape finds in a record; the values are checked later, the same for all shapes.

    prompt: a text or messages; None where the answers begin with it.
    answers: texts or conversations, by the names that messages call them.
    rewards: one per answer. preferred: one mark per answer.
    whole_text: the answer is a text without a prompt, learnt as a whole.
    """

    prompt: object
    answers: Mapping[str, object]
    rewards: Sequence[object] | object | None = None
    preferred: list[bool] | None = None
    whole_text: bool = False


def as_mapping(where: str, name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(where, f"`{name}` must be an object, got {show(value)}")
    return value


def objects(where: str, row: Mapping[str, Any], column: str, key: str) -> list[Mapping[str, Any]]:
    """Return the objects of a list, which must all have the key."""
    found = as_list(where, column, row[column])
    for number, one in enumerate(found):
        if key not in as_mapping(where, f"{column}[{number}]", one):
            raise DataError(where, f"`{column}[{number}]` has no `{key}`")
    return found


def numbered(column: str, values: Sequence[object]) -> dict[str, object]:
    """Return the values by the names that messages call them."""
    return {f"{column}[{number}]": value for number, value in enumerate(values)}


def find_prompt(where: str, row: Mapping[str, Any]) -> object:
    """Return `prompt`, `question`, or `instruction` and `input`, after the turns of `history`."""
    prompt = row.get("prompt")
    if is_absent(prompt):
        prompt = row.get("question")
    if is_absent(prompt):
        parts = [row.get(name) for name in ("instruction", "input")]
        texts = [parse_text(where, "instruction and input", one) for one in parts if _given(one)]
        prompt = "\n".join(texts) if texts else row.get("prompt")
    history = row.get("history")
    if is_absent(history):
        return prompt
    turns: list[object] = []
    for number, pair in enumerate(as_list(where, "history", history)):
        pair = to_python(pair)
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise DataError(where, f"`history[{number}]` must be a question and its answer")
        roles = ("user", "assistant")
        turns += [{"role": role, "content": text} for role, text in zip(roles, pair, strict=True)]
    return [*turns, {"role": "user", "content": parse_text(where, "prompt", prompt)}]


def _given(value: object) -> bool:
    return not is_absent(value)


_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
_ROLES = {"Human": "user", "Assistant": "assistant", "User": "user"}


def transcript(where: str, name: str, value: object) -> list[Message]:
    """Split a transcript of turns ``\\n\\nHuman: ...\\n\\nAssistant: ...`` into messages."""
    text = parse_text(where, name, value)
    return _turns(where, name, _TURN.split(text if text.startswith("\n\n") else text.lstrip()))


_HELPSTEER_TURN = re.compile(r"\n{0,2}<extra_id_1>(User|Assistant)\n")


def helpsteer_prompt(where: str, value: object) -> object:
    """Split a prompt of several turns, as HelpSteer2 marks them, into messages."""
    if not isinstance(value, str) or "<extra_id_1>" not in value:
        return value
    return _turns(where, "prompt", ["", "User", *_HELPSTEER_TURN.split(value)])


def _turns(where: str, name: str, parts: Sequence[str]) -> list[Message]:
    """Return messages of parts: a text before all turns, which is empty, then roles and texts."""
    before, *rest = parts
    if before.strip() or not rest:
        raise DataError(where, f"`{name}` is no transcript: it begins with {show(before)}")
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return [{"role": _ROLES[role], "content": content} for role, content in pairs]


_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "observation"), "tool"),
    "system": "system",
    "function_call": "function_call",
}


def sharegpt_messages(where: str, name: str, value: object) -> list[object]:
    """Turn messages of `from` and `value` into those of `role` and `content`; leave others."""
    return [
        _sharegpt_message(where, f"{name}[{number}]", one)
        for number, one in enumerate(as_list(where, name, value))
    ]


def _sharegpt_message(where: str, name: str, message: object) -> object:
    if not isinstance(message, Mapping) or "from" not in message:
        return message
    given = to_python(message["from"])
    role = _SHAREGPT_ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise DataError(where, f"{name} is from {show(given)}, not {', '.join(_SHAREGPT_ROLES)}")
    rest = {key: one for key, one in message.items() if key not in ("from", "value")}
    content = message.get("value")
    if role != "function_call":
        return rest | {"role": role, "content": content}
    functions = as_list(where, name, f"[{parse_text(where, name, content)}]")
    calls = [{"type": "function", "function": function} for function in functions]
    return rest | {"role": "assistant", "content": "", "tool_calls": calls}


def split_conversation(
    where: str, name: str, messages: Sequence[object], *, answered: bool
) -> tuple[list[object], list[object]]:
    """Split a conversation before its first assistant's message.

    Of one that does not end with an assistant's, all is the prompt unless it has to be `answered`.
    """
    roles = [one.get("role") if isinstance(one, Mapping) else None for one in messages]
    if "assistant" in roles and (answered or roles[-1] == "assistant"):
        first = roles.index("assistant")
        if not first:
            problem = f"`{name}` begins with an assistant's message"
            raise DataError(where, problem, "Put the turn that it answers before it.")
        return list(messages[:first]), list(messages[first:])
    if answered:
        raise DataError(where, f"`{name}` has no assistant's message")
    return list(messages), []
