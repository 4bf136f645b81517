"""Prompts of records: which columns go on beside new responses, and the token ids of a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..data import PromptFormat, Record
from ..data.messages import is_absent, join_prompt, one_line, parse_answers, to_python
from ..data.sources import Row, read_rows
from ..errors import DataError, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Columns that a prompt is made of; `prompt` takes their place.
_OF_PROMPTS = ("messages", "conversations", "history", "context", "system", "system_prompt")
# Columns that are written with the responses, or hold a value for each.
_OF_RESPONSES = (
    *("responses", "rewards", "finished", "generator", "scorer", "preferred", "reward_ensemble"),
    *("prompt_ids", "response_ids", "old_logps"),
)
# Columns of other shapes, which are something else in a record without responses.
_OF_SHAPES = (
    *("chosen", "rejected", "score_chosen", "score_rejected", "completion", "label", "text"),
    *("completions", "generations", "rating", "ratings", "answers", "scores", "output", "reward"),
    *("all_generated_responses", "all_rm_scores", "chosen_response", "rejected_response"),
    *("response", "response_0", "response_1", "response1", "response2", "better_response_id"),
    *("human_ref_A", "human_ref_B", "labels", "overall_preference", "kto_tag", "helpfulness"),
)


@dataclass(frozen=True)
class PromptRow:
    """A prompt that responses are sampled to.

    record: the prompt, checked, with the responses that its record has. columns: what stays beside
    new responses, `prompt` among them. replaced: names of the columns that do not.
    """

    record: Record
    columns: dict[str, Any]
    replaced: list[str]


def read_prompts(source: Any, *, limit: int | None = None) -> list[PromptRow]:
    """Read the prompts of records of any shape.

    Args:
        source: as of `data.load_records`; records may lack responses.
        limit: read at most this many; None: all.

    Returns:
        At least one prompt.

    Raises:
        DataError: a record is bad, has no prompt, or there is none.
        InputError: `limit` is less than 1.
    """
    if limit is not None and limit < 1:
        raise InputError("limit", "at least 1 record, or None for all", limit)
    rows = [_row(columns, record) for columns, record in islice(_records(source), limit)]
    if not rows:
        raise DataError(str(source), "holds no record")
    return rows


def prompt_ids(
    record: Record, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat = "auto"
) -> list[int]:
    """Return the token ids that a response to the record's prompt is sampled after.

    They are those that training puts before a response: the chat template with its generation
    prompt, or BOS and the text.

    Args:
        record: its responses are not looked at.
        tokenizer: of the model.
        prompt_format: as of `data.TokenizeOptions`.

    Raises:
        DataError: the prompt is empty or cannot be encoded.
        InputError: `prompt_format` is "chat" and the tokenizer has no template, or is no format.
    """
    given: Any = tokenizer
    template = bool(getattr(tokenizer, "chat_template", None))
    if prompt_format not in ("auto", "chat", "plain"):
        raise InputError("prompt_format", "'auto', 'chat' or 'plain'", repr(prompt_format))
    if not record.prompt:
        raise DataError(record.where, "no prompt to sample responses to")
    messages = record.prompt
    if isinstance(messages, str):
        if prompt_format == "chat" and not template:
            raise InputError("prompt_format", "a tokenizer with a chat template for 'chat'", "none")
        if not template or prompt_format == "plain":
            ids = given(messages, add_special_tokens=False)["input_ids"]
            bos = [] if given.bos_token_id is None else [given.bos_token_id]
            return [*([] if ids[:1] == bos else bos), *ids]
        messages = [{"role": "user", "content": messages}]
    if not template:
        raise DataError(record.where, "a chat prompt, but the tokenizer has no chat template")
    try:
        text = given.apply_chat_template(
            messages, tools=record.tools, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates raise errors of any class
        problem = f"the chat template cannot take it ({type(error).__name__}: {one_line(error)})"
        raise DataError(record.where, problem) from error
    found: list[int] = given(str(text), add_special_tokens=False)["input_ids"]
    return found


def _records(source: Any) -> Iterator[tuple[Mapping[str, Any], Record]]:
    return (_parse(row) for row in read_rows(source))


def _parse(row: Row) -> tuple[Mapping[str, Any], Record]:
    where, read = row
    columns = read()
    if not isinstance(columns, Mapping):
        raise DataError(where, f"a record must be an object, got {type(columns).__name__}")
    answers: dict[str, Any] = {}
    if not is_absent(columns.get("responses")):
        found = to_python(columns["responses"])
        answers = {f"responses[{number}]": one for number, one in enumerate(found)}
    elif "chosen" in columns and "rejected" in columns:
        answers = {name: columns[name] for name in ("chosen", "rejected")}
    turns, texts = parse_answers(where, answers) if answers else ([], [])
    prompt = join_prompt(where, columns.get("prompt"), turns)
    return columns, Record(prompt, [*texts], None, where)


def _row(columns: Mapping[str, Any], record: Record) -> PromptRow:
    if not record.prompt:
        raise DataError(record.where, "no prompt to sample responses to")
    new = _OF_RESPONSES + (_OF_SHAPES if record.responses else ())
    replaced = [name for name in columns if name in new and not is_absent(columns[name])]
    kept = {k: v for k, v in columns.items() if k not in new and k not in (*_OF_PROMPTS, "prompt")}
    return PromptRow(record, {"prompt": record.prompt, **kept}, replaced)
