"""Texts and conversations of a record: parse its messages, its answers and its prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError

# `role` and `content`, and what a chat template reads of calls of tools.
Message = dict[str, Any]
Prompt = str | list[Message]
Response = str | list[Message]

_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content")


def show(value: object, limit: int = 80) -> str:
    """Return the start of a value's repr on one line, or its type if repr fails."""
    try:
        return one_line(repr(value))[:limit]
    except Exception:  # integers of 5,000 digits, nesting of 1,000 levels, foreign objects
        return f"a value of type {type(value).__name__}"


def one_line(text: object) -> str:
    """Join the lines of a text, such as another library's error message."""
    return " ".join(str(text).split())


def to_python(value: Any) -> Any:
    """Turn a scalar or array of numpy, torch or pandas into Python values; leave others alone."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_absent(value: Any) -> bool:
    """Return whether a value is None, NaN (a data frame's None) or empty."""
    value = to_python(value)
    if isinstance(value, (str, list, tuple, Mapping)):
        return not value
    return value is None or (isinstance(value, float) and value != value)


def check_text(where: str, name: str, text: str) -> str:
    """Return the text; raise if no tokenizer could take it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"`{name}` has a lone surrogate, {text[error.start]!a}, at {error.start}"
        raise DataError(where, problem, "It is half of a character; remove it.") from error
    return text


def parse_messages(where: str, name: str, messages: Sequence[object]) -> list[Message]:
    return [_message(where, f"{name}[{number}]", one) for number, one in enumerate(messages)]


def _message(where: str, name: str, message: object) -> Message:
    """Parse what a chat template reads; refuse any other key, which would be lost."""
    if not isinstance(message, Mapping):
        raise DataError(where, f"{name} is not a message, got {show(message)}")
    given = {key: value for key, value in message.items() if not is_absent(value)}
    for key in given:
        if key not in _KEYS:
            problem = f"{name} has {show(key)}, and only {', '.join(_KEYS)} are read"
            raise DataError(where, problem, "Remove the key, or the record.")
    role, content = (to_python(message.get(key)) for key in ("role", "content"))
    if isinstance(content, (list, tuple, Mapping)):
        problem = f"the content of {name} is a {type(content).__name__} of parts, not a text"
        raise DataError(where, problem, "Join parts of text to one; nothing but text is supported.")
    if content is None and "tool_calls" in given:
        content = ""
    if not isinstance(role, str) or not isinstance(content, str) or not role:
        raise DataError(where, f"{name} is not a message with the texts `role` and `content`")
    parsed: Message = {
        "role": check_text(where, f"{name}.role", role),
        "content": check_text(where, f"{name}.content", content),
    }
    if "tool_calls" in given:
        parsed["tool_calls"] = _tool_calls(where, name, role, given["tool_calls"])
    for key in ("tool_call_id", "name", "reasoning_content"):
        if key in given:
            parsed[key] = parse_text(where, f"{name}.{key}", given[key])
    return parsed


def _tool_calls(where: str, name: str, role: str, calls: object) -> list[Any]:
    if role != "assistant":
        raise DataError(where, f"{name} has tool_calls, and its role is {show(role)}")
    return parse_objects(where, f"{name}.tool_calls", calls)


def parse_text(where: str, name: str, value: object) -> str:
    """Return a text."""
    value = to_python(value)
    if not isinstance(value, str):
        raise DataError(where, f"`{name}` must be a text, got {show(value)}")
    return check_text(where, name, value)


def parse_objects(where: str, name: str, value: object) -> list[dict[str, Any]]:
    """Return a list of JSON objects, which may be given as a JSON text."""
    values = as_list(where, name, value)
    try:
        found = json.loads(json.dumps([_plain(one) for one in values], allow_nan=False))
        json.dumps(found, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(where, f"`{name}` is not JSON ({one_line(error)[:80]})") from error
    for number, one in enumerate(found):
        if not isinstance(one, dict):
            raise DataError(where, f"`{name}[{number}]` is not an object, got {show(one)}")
    return list(found)


def _plain(value: Any) -> Any:
    """Turn nested arrays and mappings into lists and dicts."""
    value = to_python(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a key is not a text")
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def as_list(where: str, name: str, value: object) -> list[Any]:
    """Return a list, which may be given as a JSON text."""
    value = to_python(value)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            problem = f"`{name}` must be a list, got a text that is not one in JSON"
            raise DataError(where, f"{problem} ({one_line(error)[:80]})") from error
    if not isinstance(value, (list, tuple)):
        raise DataError(where, f"`{name}` must be a list, got {type(value).__name__}")
    return list(value)


def parse_answers(
    where: str, answers: Mapping[str, object]
) -> tuple[list[Message], list[Response]]:
    """Split answers, given by name, into the turns that all of them begin with, and responses.

    An answer is a text or a conversation that ends with an assistant's message. One that begins
    with an assistant's is the response as a whole. Otherwise the answers begin with the prompt: all
    with the same turns, up to the assistant's message where they part.
    """
    found = {name: _answer(where, name, to_python(one)) for name, one in answers.items()}
    if all(isinstance(one, str) or one[0]["role"] == "assistant" for one in found.values()):
        return [], [simplify(one) for one in found.values()]
    for name, one in found.items():
        first = next(iter(found))
        if isinstance(one, str) != isinstance(found[first], str):
            raise DataError(where, f"`{first}` and `{name}` answer different prompts")
    conversations = {name: one for name, one in found.items() if not isinstance(one, str)}
    start = _parting(where, conversations)
    turns = next(iter(conversations.values()))[:start]
    return turns, [simplify(one[start:]) for one in conversations.values()]


def _parting(where: str, conversations: Mapping[str, list[Message]]) -> int:
    """Return the position of the assistant's message where the conversations part."""
    (first, one), *others = conversations.items()
    start = min(map(len, conversations.values())) - 1
    for _, other in others:
        while one[:start] != other[:start]:
            start -= 1
    while start and any(other[start]["role"] == "tool" for other in conversations.values()):
        start -= 1  # the same call of a tool, other results
    if any(other[start]["role"] != "assistant" for other in conversations.values()):
        parted = [name for name, other in others if other[start] != one[start]]
        second = parted[0] if parted else others[0][0]
        raise DataError(where, f"`{first}` and `{second}` answer different prompts")
    return start


def _answer(where: str, name: str, answer: object) -> str | list[Message]:
    if isinstance(answer, str):
        return check_text(where, name, answer)
    if isinstance(answer, (list, tuple)) and answer:
        messages = parse_messages(where, name, answer)
        if messages[-1]["role"] == "assistant":
            return messages
    problem = f"`{name}` must be a text or one assistant message after the turns before it"
    raise DataError(where, f"{problem}, got {show(answer)}")


def simplify(response: str | list[Message]) -> Response:
    """Return the text of a single message that is nothing but a text."""
    if not isinstance(response, str) and len(response) == 1:
        return str(response[0]["content"]) if len(response[0]) == 2 else response
    return response


def join_prompt(where: str, prompt: object, turns: list[Message]) -> Prompt:
    """Join `prompt` and the turns that all answers begin with, which may repeat it."""
    prompt = to_python(prompt)
    if not turns:
        whole = _parse_prompt(where, prompt)
    elif is_absent(prompt):
        whole = turns
    elif isinstance(prompt, str):
        _check_repeated(where, prompt, turns)
        whole = turns
    else:
        whole = _join_turns(where, _parse_prompt(where, prompt), turns)
    if isinstance(whole, list) and whole[-1]["role"] == "assistant":
        raise DataError(where, "`prompt` ends with an assistant turn; that is a response")
    return whole


def as_turns(prompt: Prompt) -> list[Message]:
    """Return the prompt as messages; a text is the user's."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def add_system(where: str, system: str, prompt: Prompt) -> Prompt:
    """Put a system turn before the prompt, which may begin with it already."""
    turn: Message = {"role": "system", "content": system}
    turns = as_turns(prompt)
    if turns[0] == turn:
        return turns
    if turns[0]["role"] == "system":
        problem = f"the system turn {show(turns[0]['content'])} beside another, {show(system)}"
        raise DataError(where, problem, "Give one of them.")
    return [turn, *turns]


def _parse_prompt(where: str, prompt: object) -> Prompt:
    if isinstance(prompt, str):
        if not prompt:
            raise DataError(where, "`prompt` is empty")
        return check_text(where, "prompt", prompt)
    if not isinstance(prompt, (list, tuple)) or not prompt:
        kind = "missing" if is_absent(prompt) else f"of type {type(prompt).__name__}"
        raise DataError(where, f"`prompt` is {kind}", "It is a text or a list of chat messages.")
    return parse_messages(where, "prompt", prompt)


def _check_repeated(where: str, prompt: str, turns: list[Message]) -> None:
    """Raise unless a text prompt repeats a user turn of the conversations it stands beside.

    Another text has no role, and no position among the turns.
    """
    questions = [turn["content"].strip() for turn in turns if turn["role"] == "user"]
    if prompt.strip() not in questions:
        raise DataError(
            where,
            f"`prompt` is the text {show(prompt)}, and the answers begin with other turns",
            "Make `prompt` a list of messages, or move it into the answers as a message.",
        )


def _join_turns(where: str, prompt: Prompt, turns: list[Message]) -> Prompt:
    assert isinstance(prompt, list)
    if turns[: len(prompt)] == prompt:
        return turns
    for shared in range(1, min(len(prompt), len(turns)) + 1):
        if prompt[-shared:] == turns[:shared]:
            raise DataError(
                where,
                f"the last {shared} of `prompt` are the first turns of the answers too",
                "Give these turns once: in `prompt`, or in the answers.",
            )
    return [*prompt, *turns]
