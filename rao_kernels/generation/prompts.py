"""Prompts of records: which columns go on beside new responses, and the token ids of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..data import BadRows, DataReport, PromptFormat, Record, RecordSource, iter_raw
from ..data.encode import refuse_tools
from ..data.messages import is_absent, one_line
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


def read_prompts(
    source: Any,
    *,
    limit: int | None = None,
    bad_rows: BadRows = "raise",
    report: DataReport | None = None,
) -> list[PromptRow]:
    """Read the prompts of records of any shape.

    Args:
        source: as of `data.load_records`; records may lack responses.
        limit, bad_rows, report: as of `data.load_records`.

    Returns:
        At least one prompt.

    Raises:
        DataError: a record is bad, has no prompt, or there is none.
        InputError: `limit` is less than 1.
    """
    if not isinstance(source, RecordSource):
        source = RecordSource(source, limit=limit)
    elif limit is not None:
        raise InputError("limit", "None beside a RecordSource, which has its own", limit)
    source = replace(source, options=replace(source.options, responses_required=False))
    given = iter_raw(source, bad_rows=bad_rows, report=report)
    return [_row(*one) for one in given]


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
            refuse_tools(record)
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


def _row(columns: Mapping[str, Any], record: Record) -> PromptRow:
    if not record.prompt:
        raise DataError(record.where, "no prompt to sample responses to")
    new: tuple[str, ...] = _OF_RESPONSES
    if record.responses:
        # A conversation ends in its response.
        new = (*_OF_RESPONSES, *_OF_SHAPES, "messages", "conversations")
    replaced = [name for name in columns if name in new and not is_absent(columns[name])]
    kept = {k: v for k, v in columns.items() if k not in new and k not in (*_OF_PROMPTS, "prompt")}
    if record.tools is not None:
        # As objects, also where the file has their JSON text.
        kept["tools"] = record.tools
    return PromptRow(record, {"prompt": record.prompt, **kept}, replaced)
