"""Shapes of records that hold one response, a text alone, or a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .drafts import Draft, find_prompt, helpsteer_prompt, sharegpt_messages, split_conversation
from .messages import as_list, is_absent, show, to_python
from .numbers import parse_number

if TYPE_CHECKING:
    from .shapes import ShapeOptions

Columns = Mapping[str, Any]


def helpsteer(where: str, row: Columns, options: ShapeOptions) -> Draft:
    """Read HelpSteer: the reward is a weighted sum of the attributes."""
    weights = options.weights or {"helpfulness": 1.0}
    reward = sum(
        weight * parse_number(where, f"`{name}`", row.get(name)) for name, weight in weights.items()
    )
    prompt = helpsteer_prompt(where, to_python(row["prompt"]))
    return Draft(prompt, {"response": row["response"]}, [reward])


def openrlhf(where: str, row: Columns, options: ShapeOptions) -> Draft:
    return Draft(row["input"], {"output": row["output"]}, [row["reward"]])


def unpaired(where: str, row: Columns, options: ShapeOptions) -> Draft:
    preferred = [_label(where, "label", row["label"])]
    return Draft(row.get("prompt"), {"completion": row["completion"]}, preferred=preferred)


def completion(where: str, row: Columns, options: ShapeOptions) -> Draft:
    return Draft(row.get("prompt"), {"completion": row["completion"]})


def alpaca(where: str, row: Columns, options: ShapeOptions) -> Draft:
    return Draft(find_prompt(where, row), {"output": row["output"]}, preferred=_kto_tag(where, row))


def messages(where: str, row: Columns, options: ShapeOptions) -> Draft:
    return _conversation(
        where, row, "messages", as_list(where, "messages", row["messages"]), options
    )


def sharegpt(where: str, row: Columns, options: ShapeOptions) -> Draft:
    turns = sharegpt_messages(where, "conversations", row["conversations"])
    return _conversation(where, row, "conversations", turns, options)


def text(where: str, row: Columns, options: ShapeOptions) -> Draft:
    if not is_absent(row.get("prompt")):
        raise DataError(where, "`prompt` beside `text`", "Call the text `completion`.")
    return Draft("", {"text": row["text"]}, whole_text=True)


def prompt(where: str, row: Columns, options: ShapeOptions) -> Draft:
    return Draft(find_prompt(where, row), {})


def _conversation(
    where: str, row: Columns, name: str, turns: list[object], options: ShapeOptions
) -> Draft:
    """Read a conversation, beside which `prompt` may repeat a part of its turns."""
    before, after = split_conversation(where, name, turns, answered=options.responses_required)
    repeated = to_python(row.get("prompt"))
    if not is_absent(repeated) and not _repeats(repeated, before):
        problem = f"`prompt` is {show(repeated)}, and `{name}` begins with other turns"
        raise DataError(where, problem, "Remove the column, or rename it with `columns`.")
    return Draft(before, {name: after} if after else {}, preferred=_kto_tag(where, row))


def _repeats(prompt: object, turns: list[Any]) -> bool:
    if isinstance(prompt, str):
        contents = [turn.get("content") for turn in turns if isinstance(turn, Mapping)]
        return any(prompt.strip() in one for one in contents if isinstance(one, str))
    return list(prompt) == turns if isinstance(prompt, (list, tuple)) else False


def _kto_tag(where: str, row: Columns) -> list[bool] | None:
    """Return LLaMA-Factory's label."""
    tag = row.get("kto_tag")
    return None if tag is None else [_label(where, "kto_tag", tag)]


def _label(where: str, name: str, given: object) -> bool:
    label = to_python(given)
    if isinstance(label, bool) or (isinstance(label, int) and label in (0, 1)):
        return bool(label)
    raise DataError(where, f"`{name}` is {show(given)}, not true or false")
