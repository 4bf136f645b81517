"""Turn records into token ids: boundary of prompt and response, masks of turns, lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..errors import DataError, InputError
from .encode import Encoded, Span, common_prefix, encode_chat, encode_plain
from .messages import Response
from .records import BadRows, DataReport, Record, SampledTokens, keep_good
from .tokenized import TokenizedRow, cut_responses, take_responses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptFormat = Literal["auto", "chat", "plain"]


@dataclass(frozen=True)
class TokenizeOptions:
    """Settings of `tokenize_records`.

    max_length: most tokens of prompt and response together. A prompt is never cut.
    truncate_responses: cut a response that does not fit; otherwise drop it, since its reward was
        given for the whole of it.
    prompt_format: "chat" wraps a text prompt as a user turn of the tokenizer's chat template,
        "plain" puts BOS before it, "auto" is chat where there is a template. An empty prompt is
        that of a plain text in each of them.
    """

    max_length: int = 1024
    truncate_responses: bool = False
    prompt_format: PromptFormat = "auto"


def tokenize_records(
    records: Iterable[Record],
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    *,
    bad_rows: BadRows = "raise",
    report: DataReport | None = None,
    progress: bool = False,
) -> list[TokenizedRow]:
    """Tokenize every record.

    Args:
        records: what `load_records` returns.
        tokenizer: of the model; its chat template is used as `options.prompt_format` says, and for
            responses of several turns.
        options: lengths and format.
        bad_rows: "raise" or "skip" a record whose prompt does not fit `options.max_length`, or
            none of whose responses does.
        report: responses that were cut or dropped are counted in it.
        progress: show a progress bar.

    Returns:
        The tokenized records, in order.

    Raises:
        DataError: a record cannot be tokenized or does not fit, and `bad_rows` is "raise".
        InputError: an option is invalid or the tokenizer has no chat template for it.
    """
    return list(
        iter_tokenized(
            records, tokenizer, options, bad_rows=bad_rows, report=report, progress=progress
        )
    )


def iter_tokenized(
    records: Iterable[Record],
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    *,
    bad_rows: BadRows = "raise",
    report: DataReport | None = None,
    progress: bool = False,
) -> Iterator[TokenizedRow]:
    """Yield what `tokenize_records` returns, one record after another.

    The report is complete once the last one was yielded.
    """
    report = DataReport() if report is None else report
    _check_options(tokenizer, options)
    items = _with_progress(records) if progress else records
    for row in keep_good(
        items, lambda one: _tokenize(one, tokenizer, options, report), report, bad_rows
    ):
        report.rows += 1
        report.responses += len(row.responses)
        yield row


def _with_progress(records: Iterable[Record]) -> Any:
    from tqdm.auto import tqdm

    return tqdm(records, desc="tokenize", unit="prompt")


def _check_options(tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions) -> None:
    if options.max_length < 2:
        raise InputError("max_length", "at least 2", options.max_length)
    if options.prompt_format not in ("auto", "chat", "plain"):
        raise InputError("prompt_format", "'auto', 'chat' or 'plain'", repr(options.prompt_format))
    if options.prompt_format == "chat" and not getattr(tokenizer, "chat_template", None):
        raise InputError("prompt_format", "a tokenizer with a chat template for 'chat'", "none")


def _tokenize(
    record: Record,
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    report: DataReport,
) -> TokenizedRow:
    if record.sampled is None:
        row = _encoded_row(record, tokenizer, options)
        report.responses_unfinished += (record.finished or []).count(False)
    else:
        row = _sampled_row(record, record.sampled, tokenizer, options)
    if len(row.prompt) == 0:
        raise DataError(record.where, "its prompt has no token")
    if len(row.prompt) >= options.max_length:
        raise DataError(
            record.where,
            f"its prompt has {len(row.prompt)} tokens, which leaves none for a response in "
            f"max_length={options.max_length}",
            "Raise max_length or remove the record; prompts are never cut.",
        )
    return _fit(row, options, report)


def _encoded_row(
    record: Record, tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions
) -> TokenizedRow:
    """Encode the responses, and the gold answer as one of them: all share the prompt's tokens."""
    answers = [*record.responses, *([] if record.gold is None else [record.gold])]
    finished = [*(record.finished or [True] * len(record.responses)), True][: len(answers)]
    encoded = _encode(record, answers, finished, tokenizer, options)
    boundary = encoded.prompt_length
    ids = [_ids(sequence[boundary:]) for sequence in encoded.sequences]
    masks = _masks(encoded)
    row = _row(record, _ids(encoded.sequences[0][:boundary]), ids[: len(record.responses)])
    if masks is not None:
        row = replace(row, masks=masks[: len(record.responses)])
    if record.gold is not None:
        row = replace(row, gold=ids[-1], gold_mask=None if masks is None else masks[-1])
    return row


def _sampled_row(
    record: Record,
    sampled: SampledTokens,
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
) -> TokenizedRow:
    """Take the ids that a policy sampled; only the gold answer, if any, is encoded."""
    _check_sampled(record, sampled)
    prompt = sampled.prompt_ids
    row = _row(record, _ids(prompt), [_ids(ids) for ids in sampled.response_ids])
    if sampled.old_logps is not None:
        values = [torch.tensor(logps, dtype=torch.float32) for logps in sampled.old_logps]
        row = replace(
            row,
            token_inputs={"old_token_logps": values},
            logp_temperature=sampled.logp_temperature,
        )
    if record.gold is None:
        return row
    encoded = _encode(record, [record.gold], [True], tokenizer, options)
    sequence = encoded.sequences[0]
    if common_prefix(prompt, sequence) < len(prompt):
        raise DataError(
            record.where,
            "its prompt, encoded with the gold answer, does not begin with its `prompt_ids`",
            "Train with the tokenizer and prompt_format that the responses were sampled with.",
        )
    masks = _masks(replace(encoded, prompt_length=len(prompt)))
    gold_mask = None if masks is None else masks[0]
    return replace(row, gold=_ids(sequence[len(prompt) :]), gold_mask=gold_mask)


def _check_sampled(record: Record, sampled: SampledTokens) -> None:
    """Raise unless there are ids for each response, and a log-prob for each id."""
    found = {"response_ids": sampled.response_ids, "old_logps": sampled.old_logps}
    for name, values in found.items():
        if values is not None and len(values) != len(record.responses):
            problem = f"{len(record.responses)} responses, but `{name}` of {len(values)}"
            raise DataError(record.where, problem)
    for number, logps in enumerate(sampled.old_logps or ()):
        expected = len(sampled.response_ids[number])
        if len(logps) != expected:
            problem = f"response {number} has {expected} `response_ids`, but {len(logps)} values "
            raise DataError(record.where, f"{problem}of `old_logps`")


def _row(record: Record, prompt: Tensor, responses: list[Tensor]) -> TokenizedRow:
    return TokenizedRow(
        prompt,
        responses,
        record.rewards,
        record.preferred,
        record.where,
        gold_reward=record.gold_reward,
        ref_rewards=record.ref_rewards,
        reward_ensemble=record.reward_ensemble,
    )


def _encode(
    record: Record,
    answers: list[Response],
    finished: list[bool],
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
) -> Encoded:
    encode = encode_chat if _is_chat(record, answers, tokenizer, options) else encode_plain
    return encode(record, answers, finished, tokenizer)


def _is_chat(
    record: Record,
    answers: list[Response],
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
) -> bool:
    has_template = bool(getattr(tokenizer, "chat_template", None))
    of_turns = not all(isinstance(answer, str) for answer in answers)
    if of_turns or not isinstance(record.prompt, str):
        if not has_template:
            kind = "responses of several messages" if of_turns else "a chat prompt"
            raise DataError(record.where, f"{kind}, but the tokenizer has no chat template")
        return True
    return has_template and record.prompt != "" and options.prompt_format != "plain"


def _masks(encoded: Encoded) -> list[Tensor] | None:
    """Return per sequence which tokens after the prompt are scored; None if all of them are."""
    if all(spans is None for spans in encoded.spans):
        return None
    pairs = zip(encoded.sequences, encoded.spans, strict=True)
    masks = [_mask(len(sequence), encoded.prompt_length, spans) for sequence, spans in pairs]
    return None if all(bool(mask.all()) for mask in masks) else masks


def _mask(length: int, prompt_length: int, spans: list[Span] | None) -> Tensor:
    if spans is None:
        return torch.ones(length - prompt_length, dtype=torch.bool)
    mask = torch.zeros(length, dtype=torch.bool)
    for start, end in spans:
        mask[start:end] = True
    # Where another response merges with the end of the prompt, the first turn begins there.
    mask[prompt_length : spans[0][1]] = True
    return mask[prompt_length:]


def _fit(row: TokenizedRow, options: TokenizeOptions, report: DataReport) -> TokenizedRow:
    budget = options.max_length - len(row.prompt)
    too_long = [len(response) > budget for response in row.responses]
    if not any(too_long):
        return row
    if options.truncate_responses:
        report.responses_truncated += sum(too_long)
        return cut_responses(row, budget)
    kept = [position for position, drop in enumerate(too_long) if not drop]
    if not kept:
        raise DataError(
            row.where,
            f"none of its {len(too_long)} responses fits max_length={options.max_length}",
            "Raise max_length, remove the record, or set truncate_responses=True.",
        )
    report.responses_dropped += sum(too_long)
    return take_responses(row, kept)


def _ids(ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int32)
