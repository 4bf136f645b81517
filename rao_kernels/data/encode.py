"""Encode a record: chat template, plain text with BOS and EOS, or the tokens a policy sampled.

Each way gives the ids of the prompt and of the sequences, prompt and response together, since
tokens may merge across the boundary. Of a response of several turns the assistant's are scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .messages import Message, Response, one_line
from .records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Ids of a prompt and of its sequences.

    prompt_length: tokens that are the prompt of every sequence.
    spans: per sequence the ranges of its tokens that are scored; None: all after the prompt.
    """

    prompt_length: int
    sequences: list[list[int]]
    spans: list[list[Span] | None]


def encode_chat(
    record: Record,
    responses: Sequence[Response],
    finished: Sequence[bool],
    tokenizer: PreTrainedTokenizerBase,
) -> Encoded:
    """Encode with the chat template, which writes BOS and the end of the turn itself.

    Of a response that is not finished, what the template writes after it is left out.
    """
    chat = _Chat(record, tokenizer)
    prompt = chat.encode(chat.messages, start=True)
    sequences, spans = [], []
    for response, ends in zip(responses, finished, strict=True):
        turns = (
            [{"role": "assistant", "content": response}] if isinstance(response, str) else response
        )
        messages = [*chat.messages, *turns]
        sequence = chat.encode(messages) if ends else chat.encode_cut(messages)
        sequences.append(sequence)
        spans.append(chat.spans(turns, sequence) if len(turns) > 1 else None)
    boundary = min(common_prefix(prompt, sequence) for sequence in sequences)
    return Encoded(boundary, sequences, spans)


def encode_plain(
    record: Record,
    responses: Sequence[Response],
    finished: Sequence[bool],
    tokenizer: PreTrainedTokenizerBase,
) -> Encoded:
    """Encode BOS + prompt + response + EOS, each special token once, if the tokenizer has it.

    Of a text without a prompt BOS is the prompt, and its first token where there is no BOS. EOS
    does not follow a response that is not finished.
    """
    refuse_tools(record)
    texts = [str(record.prompt)] + [f"{record.prompt}{response}" for response in responses]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = encode_texts(record, texts, tokenizer)
    with_bos = [ids if bos and ids[:1] == bos else bos + ids for ids in encoded]
    prompt, *sequences = with_bos
    sequences = [
        ids + eos if ends and ids[-1:] != eos else ids
        for ids, ends in zip(sequences, finished, strict=True)
    ]
    if record.prompt == "" and not prompt:
        prompt = sequences[0][:1]
    boundary = min(common_prefix(prompt, sequence) for sequence in sequences)
    if record.prompt == "" and any(len(sequence) == boundary for sequence in sequences):
        raise DataError(record.where, f"its text has {boundary} token, and nothing to learn")
    return Encoded(boundary, sequences, [None] * len(sequences))


def refuse_tools(record: Record) -> None:
    """Raise if the record has `tools`, for which plain text has no place."""
    if record.tools is not None:
        fix = "Take a tokenizer with a chat template, or remove the column."
        raise DataError(record.where, "`tools`, which plain text has no place for", fix)


def encode_texts(
    record: Record, texts: list[str], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    with _failing_as_bad_row(record, "the tokenizer"):
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the number of tokens that both begin with.

    Of a prompt and its sequence it may be less than the prompt: tokens merge across the boundary.
    """
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return position
    return min(len(left), len(right))


class _Chat:
    """A record's prompt as messages, rendered by the tokenizer's chat template."""

    def __init__(self, record: Record, tokenizer: PreTrainedTokenizerBase) -> None:
        self.record = record
        self.tokenizer = tokenizer
        prompt = record.prompt
        self.messages: list[Message] = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        )

    def render(self, messages: list[Message], start: bool) -> str:
        """Return the text of `messages`; start: and of the beginning of an assistant's turn."""
        tools: Any = self.record.tools
        with _failing_as_bad_row(self.record, "the chat template"):
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=start,
                )
            )

    def encode(self, messages: list[Message], start: bool = False) -> list[int]:
        (ids,) = encode_texts(self.record, [self.render(messages, start)], self.tokenizer)
        return ids if start else _cut_after_eos(ids, self.tokenizer)

    def encode_cut(self, messages: list[Message]) -> list[int]:
        """Encode up to the last character of the last message, which sampling cut."""
        content = messages[-1]["content"]
        text = self.render(messages, False)
        end = text.rfind(content.strip()) if isinstance(content, str) and content.strip() else -1
        if end < 0:
            raise DataError(
                self.record.where,
                "the chat template changes a response that is not `finished`, so that its end "
                "cannot be told",
                "Remove the response, or the column `finished` to take it for a whole one.",
            )
        (ids,) = encode_texts(self.record, [text[: end + len(content.strip())]], self.tokenizer)
        return ids

    def spans(self, turns: list[Message], sequence: list[int]) -> list[Span]:
        """Return the ranges of `sequence` that the assistant's turns among `turns` take.

        A turn begins where its generation prompt ends, and ends with what ends a turn.
        """
        whole = [*self.messages, *turns]
        text = self.render(whole, False)
        spans: list[Span] = []
        for number, turn in enumerate(turns, len(self.messages)):
            if turn["role"] != "assistant":
                continue
            before, through = whole[:number], whole[: number + 1]
            for part in (before, through):
                if not text.startswith(self.render(part, False).rstrip()):
                    raise self._rewritten(number)
            start = common_prefix(self.encode(before, start=True), sequence)
            spans.append((start, common_prefix(self.encode(through), sequence)))
        return spans

    def _rewritten(self, number: int) -> DataError:
        return DataError(
            self.record.where,
            f"the chat template writes the turns up to message {number} otherwise once others "
            "follow, so that the tokens of the assistant's turns cannot be told",
            "Use a chat template that writes each turn alike wherever it stands, or make each "
            "answer a record of its own, with the turns before it as its prompt.",
        )


def _cut_after_eos(sequence: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Drop the white space a template writes after the last end of turn: no model generates it."""
    eos = tokenizer.eos_token_id
    if eos not in sequence:
        return sequence
    end = len(sequence) - sequence[::-1].index(eos)
    return sequence if str(tokenizer.decode(sequence[end:])).strip() else sequence[:end]


@contextmanager
def _failing_as_bad_row(record: Record, who: str) -> Iterator[None]:
    """Turn an exception of any class, raised by a template or tokenizer, into a `DataError`."""
    try:
        yield
    except Exception as error:
        problem = f"{who} cannot take it ({type(error).__name__}: {one_line(error)})"
        raise DataError(record.where, problem) from error
