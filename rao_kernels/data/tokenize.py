"""Turn text into token ids: chat template, boundary of prompt and response, EOS, lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..errors import DataError, InputError
from .messages import Message, one_line
from .records import BadRows, DataReport, Record, keep_good

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptFormat = Literal["auto", "chat", "plain"]


@dataclass(frozen=True)
class TokenizedRow:
    """A prompt and its responses as int32 ids; ``prompt + responses[j]`` is sequence j.

    rewards, preferred: one value per response, or None where they are not known.
    masks: per response a bool per token, False where it is not scored (the turns of a user or a
        tool); None: every token is.
    token_inputs: inputs of a loss with a value per token, by name (`old_token_logps`): per response
        fp32 values of its tokens.
    gold, gold_reward: the gold answer's ids, and its reward where it is known.
    gold_marks: True for the response that is the gold answer, once it is one of `responses`.
    ref_rewards, reward_ensemble: as of a `Record`.
    kl_responses: per response, the response to another prompt that KTO pairs this prompt with.
    """

    prompt: Tensor
    responses: list[Tensor]
    rewards: list[float] | None
    preferred: list[bool] | None
    where: str
    masks: list[Tensor] | None = None
    token_inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    gold: Tensor | None = None
    gold_reward: float | None = None
    gold_marks: list[bool] | None = None
    ref_rewards: list[float] | None = None
    reward_ensemble: list[list[float]] | None = None
    kl_responses: list[Tensor] | None = None


@dataclass(frozen=True)
class TokenizeOptions:
    """Settings of `tokenize_records`.

    max_length: most tokens of prompt and response together. A prompt is never cut.
    truncate_responses: cut a response that does not fit; otherwise drop it, since its reward was
        given for the whole of it.
    prompt_format: "chat" wraps a text prompt as a user turn of the tokenizer's chat template,
        "plain" puts BOS before it, "auto" is chat where there is a template.
    """

    max_length: int = 1024
    truncate_responses: bool = False
    prompt_format: PromptFormat = "auto"


def tokenize_records(
    records: Sequence[Record],
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
        tokenizer: of the model; its chat template is used as `options.prompt_format` says.
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
    report = DataReport() if report is None else report
    _check_options(tokenizer, options)
    items = _with_progress(records) if progress else records
    rows = list(
        keep_good(items, lambda one: _tokenize(one, tokenizer, options, report), report, bad_rows)
    )
    report.rows += len(rows)
    report.responses += sum(len(row.responses) for row in rows)
    return rows


def as_pairs(rows: Sequence[TokenizedRow], report: DataReport) -> list[TokenizedRow]:
    """Reduce each record to a pair: the preferred response, then the lowest-rewarded other one.

    The preferred one is a pair's chosen response, or the one of the highest reward. Records
    without an order (all rewards equal, or one response) are dropped and counted in the report.

    Args:
        rows: what `tokenize_records` returns.
        report: dropped records and responses are counted in it.

    Returns:
        Records of two responses, the preferred one first.
    """
    pairs = [_as_pair(row) for row in rows]
    found = [pair for pair in pairs if pair is not None]
    report.rows_without_pair += len(pairs) - len(found)
    of_pairs = (row for row, pair in zip(rows, pairs, strict=True) if pair is not None)
    report.responses_beside_pair += sum(len(row.responses) - 2 for row in of_pairs)
    return found


def mark_preferred(rows: Sequence[TokenizedRow]) -> list[TokenizedRow]:
    """Mark the preferred responses: a pair's chosen one, else every one of the highest reward.

    Records with neither stay as they are.
    """
    return [
        replace(row, preferred=[reward == max(row.rewards) for reward in row.rewards])
        if row.preferred is None and row.rewards is not None
        else row
        for row in rows
    ]


def drop_unlabelled(rows: Sequence[TokenizedRow], report: DataReport) -> list[TokenizedRow]:
    """Drop the records without a preferred response whose rewards are all equal.

    Args:
        rows: what `tokenize_records` returns.
        report: names the dropped records in `rows_without_label`.
    """
    equal = [row.preferred is None and len(set(row.rewards or ())) < 2 for row in rows]
    report.rows_without_label += [row.where for row, drop in zip(rows, equal, strict=True) if drop]
    return [row for row, drop in zip(rows, equal, strict=True) if not drop]


def shared_start(rows: Sequence[TokenizedRow]) -> int:
    """Return the number of tokens that all prompts begin with: the longest t0 RAO can have.

    If prompts differ, none is t0 as a whole: the last token of the shortest one is left out, unless
    it is its only one. If all are the same prompt, that is t0, and nothing of it is scored.
    """
    start = rows[0].prompt.tolist()
    for row in rows:
        start = start[: _common_prefix(start, row.prompt[: len(start)].tolist())]
    if all(len(row.prompt) == len(start) for row in rows):
        return len(start)
    shortest = min(len(row.prompt) for row in rows)
    return min(len(start), max(shortest - 1, 1))


def check_shared_start(rows: Sequence[TokenizedRow], prefix_length: int) -> None:
    """Raise unless all prompts begin with the same `prefix_length` tokens (t0 of RAO).

    Raises:
        DataError: names the first prompt that begins otherwise than most.
    """
    starts = [tuple(row.prompt[:prefix_length].tolist()) for row in rows]
    for start, count in Counter(starts).most_common(1):
        for row, own in zip(rows, starts, strict=True):
            if own != start or len(own) < prefix_length:
                raise DataError(
                    row.where,
                    f"its prompt begins with tokens {list(own)}, {count} of {len(rows)} prompts "
                    f"with {list(start)}; RAO needs one t0 of {prefix_length} tokens for all",
                    "Use a tokenizer with a BOS token, or prompt_format='chat'.",
                )


def _with_progress(records: Sequence[Record]) -> Any:
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
    encode = _encode_chat if _is_chat(record, tokenizer, options) else _encode_plain
    prompt, sequences = encode(record, tokenizer)
    boundary = min(_common_prefix(prompt, sequence) for sequence in sequences)
    if boundary == 0:
        raise DataError(record.where, "its prompt has no token")
    if boundary >= options.max_length:
        raise DataError(
            record.where,
            f"its prompt has {boundary} tokens, which leaves none for a response in "
            f"max_length={options.max_length}",
            "Raise max_length or remove the record; prompts are never cut.",
        )
    row = TokenizedRow(
        _ids(sequences[0][:boundary]),
        [_ids(sequence[boundary:]) for sequence in sequences],
        record.rewards,
        record.preferred,
        record.where,
    )
    return _fit(row, options, report)


def _is_chat(record: Record, tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions) -> bool:
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if not isinstance(record.prompt, str):
        if not has_template:
            raise DataError(record.where, "a chat prompt, but the tokenizer has no chat template")
        return True
    return has_template and options.prompt_format != "plain"


def _encode_chat(
    record: Record, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[list[int]]]:
    """Encode with the chat template, which writes BOS and the end of the turn itself."""
    messages: list[Message] = (
        [{"role": "user", "content": record.prompt}]
        if isinstance(record.prompt, str)
        else record.prompt
    )
    with _failing_as_bad_row(record, "the chat template"):
        start = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        texts = [str(start)]
        for response in record.responses:
            answer = [*messages, {"role": "assistant", "content": response}]
            texts.append(str(tokenizer.apply_chat_template(answer, tokenize=False)))
    prompt, *sequences = _encode(record, texts, tokenizer)
    return prompt, [_cut_after_eos(sequence, tokenizer) for sequence in sequences]


def _encode(
    record: Record, texts: list[str], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    with _failing_as_bad_row(record, "the tokenizer"):
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


@contextmanager
def _failing_as_bad_row(record: Record, who: str) -> Iterator[None]:
    """Turn an exception of any class, raised by a template or tokenizer, into a `DataError`."""
    try:
        yield
    except Exception as error:
        problem = f"{who} cannot take it ({type(error).__name__}: {one_line(error)})"
        raise DataError(record.where, problem) from error


def _cut_after_eos(sequence: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Drop the white space a template writes after the last end of turn: no model generates it."""
    eos = tokenizer.eos_token_id
    if eos not in sequence:
        return sequence
    end = len(sequence) - sequence[::-1].index(eos)
    return sequence if str(tokenizer.decode(sequence[end:])).strip() else sequence[:end]


def _encode_plain(
    record: Record, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[list[int]]]:
    """Encode BOS + prompt + response + EOS, each special token once, if the tokenizer has it."""
    texts = [str(record.prompt)] + [f"{record.prompt}{response}" for response in record.responses]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = _encode(record, texts, tokenizer)
    with_bos = [ids if bos and ids[:1] == bos else bos + ids for ids in encoded]
    prompt, *sequences = with_bos
    return prompt, [ids if eos and ids[-1:] == eos else ids + eos for ids in sequences]


def _common_prefix(left: list[int], right: list[int]) -> int:
    """Return the number of tokens that both begin with.

    Of a prompt and its sequence it may be less than the prompt: tokens merge across the boundary.
    """
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return position
    return min(len(left), len(right))


def _fit(row: TokenizedRow, options: TokenizeOptions, report: DataReport) -> TokenizedRow:
    budget = options.max_length - len(row.prompt)
    too_long = [len(response) > budget for response in row.responses]
    if not any(too_long):
        return row
    if options.truncate_responses:
        report.responses_truncated += sum(too_long)
        return replace(row, responses=[response[:budget] for response in row.responses])
    kept = [position for position, drop in enumerate(too_long) if not drop]
    if not kept:
        raise DataError(
            row.where,
            f"none of its {len(too_long)} responses fits max_length={options.max_length}",
            "Raise max_length, remove the record, or set truncate_responses=True.",
        )
    report.responses_dropped += sum(too_long)
    return _take(row, kept)


def _take(row: TokenizedRow, kept: Sequence[int]) -> TokenizedRow:
    """Return the record with these responses, in this order."""
    return replace(
        row,
        responses=[row.responses[position] for position in kept],
        rewards=None if row.rewards is None else [row.rewards[position] for position in kept],
        preferred=None if row.preferred is None else [row.preferred[j] for j in kept],
    )


def _as_pair(row: TokenizedRow) -> TokenizedRow | None:
    """Return the record with its best and its worst response; None if all are equally good."""
    everyone = range(len(row.responses))
    named = None if row.preferred is None else [j for j in everyone if row.preferred[j]]
    if named is None and row.rewards is None:
        return None
    if len(row.responses) < 2 or (named is not None and len(named) in (0, len(everyone))):
        return None
    best = named[0] if named else max(everyone, key=(row.rewards or []).__getitem__)
    others = [j for j in everyone if j != best]
    worst = others[0] if row.rewards is None else min(others, key=row.rewards.__getitem__)
    if not named and row.rewards is not None and row.rewards[worst] == row.rewards[best]:
        return None
    if len(row.responses) == 2 and row.preferred == [True, False]:
        return row
    return replace(_take(row, [best, worst]), preferred=[True, False])


def _ids(ids: Sequence[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int32)
