"""The token ids of a prompt, as training has them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ..data import PromptFormat, Record, TokenizeOptions
from ..data.tokenize import _check_options, _encode_chat, _encode_plain, _is_chat
from ..errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_ids(
    record: Record, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat = "auto"
) -> list[int]:
    """Return the token ids that a response to the record's prompt is sampled after.

    They are those that training puts before a response: the chat template with its generation
    prompt, or BOS and the text.

    Args:
        record: its responses are not looked at.
        tokenizer: of the model.
        prompt_format: as of `TokenizeOptions`.

    Raises:
        DataError: the prompt is empty or cannot be encoded.
    """
    options = TokenizeOptions(prompt_format=prompt_format)
    _check_options(tokenizer, options)
    if not record.prompt:
        raise DataError(record.where, "no prompt to sample responses to")
    encode = _encode_chat if _is_chat(record, tokenizer, options) else _encode_plain
    ids, _ = encode(dataclasses.replace(record, responses=[]), tokenizer)
    if not ids:
        raise DataError(record.where, "its prompt has no token")
    return ids
