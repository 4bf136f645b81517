"""Texts and conversations of a record: parse its messages, its answers and its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError

# `role` and `content`, and what a chat template reads of calls of tools.
Message = dict[str, Any]
Prompt = str | list[Message]
Response = str | list[Message]


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
    """Parse `role` and `content`; refuse any other key, which would be lost."""
    if not isinstance(message, Mapping):
        raise DataError(where, f"{name} is not a message, got {show(message)}")
    for key, value in message.items():
        if key not in ("role", "content") and not is_absent(value):
            problem = f"{name} has {show(key)}, and only `role` and `content` are read"
            raise DataError(where, problem, "Remove the key, or the record.")
    role, content = (to_python(message.get(key)) for key in ("role", "content"))
    if isinstance(content, (list, tuple, Mapping)):
        problem = f"the content of {name} is a {type(content).__name__} of parts, not a text"
        raise DataError(where, problem, "Join parts of text to one; nothing but text is supported.")
    if not isinstance(role, str) or not isinstance(content, str) or not role:
        raise DataError(where, f"{name} is not a message with the texts `role` and `content`")
    return {
        "role": check_text(where, f"{name}.role", role),
        "content": check_text(where, f"{name}.content", content),
    }


def parse_answers(where: str, answers: Mapping[str, object]) -> tuple[list[Message], list[str]]:
    """Split answers, given by name, into the turns before them and their texts.

    An answer is a text or a conversation that ends in it; all must begin with the same turns.
    """
    found = [_answer(where, name, to_python(answer)) for name, answer in answers.items()]
    first = next(iter(answers))
    for name, (turns, _) in zip(answers, found, strict=True):
        if turns != found[0][0]:
            raise DataError(where, f"`{first}` and `{name}` answer different prompts")
    return found[0][0], [text for _, text in found]


def _answer(where: str, name: str, answer: object) -> tuple[list[Message], str]:
    if isinstance(answer, str):
        return [], check_text(where, name, answer)
    if isinstance(answer, (list, tuple)) and answer:
        *turns, last = parse_messages(where, name, answer)
        if last["role"] == "assistant":
            return turns, last["content"]
    problem = f"`{name}` must be a text or one assistant message after the turns before it"
    raise DataError(where, f"{problem}, got {show(answer)}")


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
