"""From what a shape found in a line of data to a checked record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import DataError
from .drafts import Draft
from .messages import (
    Message,
    Prompt,
    Response,
    add_system,
    as_list,
    as_turns,
    check_text,
    is_absent,
    join_prompt,
    parse_answers,
    parse_objects,
    parse_text,
    show,
    simplify,
    to_python,
)
from .numbers import parse_number, parse_numbers, parse_rewards
from .records import Record, SampledTokens
from .shapes import Shape, ShapeOptions

# Columns that change the model's input in other trainers, and would be ignored here.
_REFUSED = (
    *("functions", "tool_calls", "function_call", "documents", "chat_template_kwargs"),
    *("image", "images", "video", "videos", "audio", "audios", "context", "history"),
)
_SYSTEM = ("system", "system_prompt")
# Columns that are about the prompt, whatever the shape.
PROMPT_COLUMNS = (*_SYSTEM, "tools", "gold", "gold_reward", "ref_rewards")


def make_record(where: str, row: Mapping[str, Any], shape: Shape, options: ShapeOptions) -> Record:
    """Read a record of a known shape, and check it."""
    _check_columns(where, row, shape)
    draft = shape.draft(where, row, options)
    if not draft.answers and options.responses_required:
        raise DataError(where, f"no response in its columns {show(list(row), 200)}")
    prompt, responses = _texts(where, row, draft)
    count = len(responses)
    gold = row.get("gold")
    return Record(
        prompt,
        responses,
        _rewards(where, draft, count, options),
        where,
        preferred=draft.preferred or None,
        gold=None if gold is None else _gold(where, gold),
        gold_reward=_optional_number(where, row, "gold_reward"),
        ref_rewards=_optional_numbers(where, row, "ref_rewards"),
        reward_ensemble=_ensemble(where, row, count),
        tools=None if is_absent(row.get("tools")) else parse_objects(where, "tools", row["tools"]),
        sampled=_sampled(where, row, count),
        margin=_optional_number(where, row, "margin"),
        finished=_finished(where, row, count),
    )


def _check_columns(where: str, row: Mapping[str, Any], shape: Shape) -> None:
    """Raise if a column would be ignored though it belongs to the prompt or the responses."""
    for name in _REFUSED:
        if name not in shape.uses and not is_absent(row.get(name)):
            problem = f"the column `{name}` would be ignored"
            fix = "Put what it says into `prompt`, remove the column, or rename it with `columns`."
            raise DataError(where, problem, fix)
    forms = [("chosen", "rejected"), ("responses", "rewards")]
    paired, native = ([key for key in keys if not is_absent(row.get(key))] for keys in forms)
    if paired and native:
        fix = "Rename the others with `columns`."
        raise DataError(where, f"`{native[0]}` beside `{paired[0]}`: a record has one of them", fix)


def _texts(where: str, row: Mapping[str, Any], draft: Draft) -> tuple[Prompt, list[Response]]:
    """Return the prompt, with its system turn, and the responses."""
    if draft.whole_text:
        (given,) = draft.answers.values()
        if any(not is_absent(row.get(name)) for name in (*_SYSTEM, "tools")):
            raise DataError(where, "`text` has no prompt, and a system turn or tools beside it")
        return "", [parse_text(where, "text", given)]
    turns: list[Message] = []
    responses: list[Response] = []
    if draft.answers:
        turns, responses = parse_answers(where, draft.answers)
    prompt = join_prompt(where, draft.prompt, turns)
    for name in _SYSTEM:
        if not is_absent(row.get(name)):
            prompt = add_system(where, parse_text(where, name, row[name]), prompt)
    if any(not isinstance(response, str) for response in responses):
        prompt = as_turns(prompt)
    return prompt, responses


def _rewards(where: str, draft: Draft, count: int, options: ShapeOptions) -> list[float] | None:
    if draft.rewards is not None and not _is_nan(draft.rewards):
        return parse_rewards(where, draft.rewards, count) or None
    if not draft.preferred or options.label_rewards is None:
        return None
    good, other = options.label_rewards
    return [float(good if mark else other) for mark in draft.preferred]


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and value != value


def _gold(where: str, given: object) -> Response:
    """Return the gold answer: a text, or messages that begin and end with an assistant's."""
    gold = to_python(given)
    if isinstance(gold, str):
        return check_text(where, "gold", gold)
    turns, (response,) = parse_answers(where, {"gold": gold})
    if turns:
        problem = f"`gold` must begin with an assistant's message, got {show(gold)}"
        raise DataError(where, problem, "The turns before it belong to `prompt`.")
    return simplify(response)


def _optional_number(where: str, row: Mapping[str, Any], name: str) -> float | None:
    return None if row.get(name) is None else parse_number(where, f"`{name}`", row[name])


def _optional_numbers(where: str, row: Mapping[str, Any], name: str) -> list[float] | None:
    return None if is_absent(row.get(name)) else parse_numbers(where, name, row[name])


def _finished(where: str, row: Mapping[str, Any], count: int) -> list[bool] | None:
    """Read which responses ended; a column `finished` that is no list says something else."""
    marks = to_python(row.get("finished"))
    if not isinstance(marks, (list, tuple)) or not marks:
        return None
    marks = [to_python(mark) for mark in marks]
    if not all(isinstance(mark, bool) for mark in marks):
        raise DataError(where, f"`finished` must hold true or false, got {show(marks)}")
    _check_count(where, "finished", len(marks), "responses", count)
    return None if all(marks) else marks


def _ensemble(where: str, row: Mapping[str, Any], count: int) -> list[list[float]] | None:
    if is_absent(row.get("reward_ensemble")):
        return None
    models = as_list(where, "reward_ensemble", row["reward_ensemble"])
    found = []
    for number, rewards in enumerate(models):
        values = parse_numbers(where, f"reward_ensemble[{number}]", rewards)
        _check_count(where, f"reward_ensemble[{number}]", len(values), "responses", count)
        found.append(values)
    return found


def _sampled(where: str, row: Mapping[str, Any], count: int) -> SampledTokens | None:
    """Read the tokens that a policy sampled, and their log-probs."""
    names = ("prompt_ids", "response_ids", "old_logps")
    given = [name for name in names if not is_absent(row.get(name))]
    if not given:
        return None
    for name in names[:2]:
        if name not in given:
            fix = "Give `prompt_ids` and `response_ids`, or neither."
            raise DataError(where, f"`{given[0]}` without `{name}`", fix)
    prompt_ids = _ids(where, "prompt_ids", row["prompt_ids"])
    response_ids = [
        _ids(where, f"response_ids[{number}]", ids)
        for number, ids in enumerate(as_list(where, "response_ids", row["response_ids"]))
    ]
    _check_count(where, "response_ids", len(response_ids), "responses", count)
    if "old_logps" not in given:
        return SampledTokens(prompt_ids, response_ids)
    old_logps = [
        parse_numbers(where, f"old_logps[{number}]", logps)
        for number, logps in enumerate(as_list(where, "old_logps", row["old_logps"]))
    ]
    _check_count(where, "old_logps", len(old_logps), "responses", count)
    for number, (ids, logps) in enumerate(zip(response_ids, old_logps, strict=True)):
        _check_count(where, f"old_logps[{number}]", len(logps), "tokens", len(ids))
    temperature = _logp_temperature(where, row.get("generator"))
    return SampledTokens(prompt_ids, response_ids, old_logps, temperature)


def _logp_temperature(where: str, generator: object) -> float:
    """Return the temperature of the log-probs; files of others name that of sampling only."""
    said = to_python(generator)
    if not isinstance(said, Mapping):
        return 1.0
    for name in ("logp_temperature", "temperature"):
        if said.get(name) is not None:
            return parse_number(where, f"`generator.{name}`", said[name])
    return 1.0


def _ids(where: str, name: str, given: object) -> list[int]:
    ids = to_python(given)
    if not isinstance(ids, (list, tuple)) or not ids:
        raise DataError(where, f"`{name}` must be a list of token ids, got {show(ids)}")
    ids = [to_python(one) for one in ids]
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 2**31:
            raise DataError(where, f"`{name}` holds {show(one)}, which is no token id")
    return ids


def _check_count(where: str, name: str, count: int, of: str, expected: int) -> None:
    if count != expected:
        raise DataError(where, f"`{name}` has {count} values for {expected} {of}")
