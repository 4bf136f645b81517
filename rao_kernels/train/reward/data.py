"""Pairs as a reward model reads them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ...data import (
    DataReport,
    PreferenceDataset,
    Record,
    TokenizedRow,
    as_pairs,
    dataset_statistics,
    iter_records,
)
from ...data.records import NoRowsError, keep_good
from ...errors import DataError, InputError
from ...rewards.encode import encode
from ..prepare import say
from .config import RewardConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class PairDataset(PreferenceDataset):
    """Pairs, the chosen response first. The rewards of a pair, if any, are its margin and 0."""


def prepare_pairs(
    source: Any, name: str, config: RewardConfig, tokenizer: PreTrainedTokenizerBase
) -> PairDataset | dict[str, PairDataset] | None:
    """Make the dataset of pairs of any source of records, or those of a dict of sources.

    Records become pairs as `data.as_pairs` makes them, in the reward model's own template.

    Raises:
        DataError: a record is bad.
        NoRowsError: no record holds a pair.
    """
    if source is None or isinstance(source, PairDataset):
        return source
    if isinstance(source, PreferenceDataset):
        expected = "records, which a reward model tokenizes in its own way"
        raise InputError(name, expected, "a PreferenceDataset")
    if isinstance(source, Mapping):
        named = {key: (one, f"{name} {key!r}") for key, one in source.items()}
        return {key: _pairs(one, text, config, tokenizer) for key, (one, text) in named.items()}
    return _pairs(source, name, config, tokenizer)


def pair_statistics(pairs: PairDataset) -> Iterator[tuple[str, str]]:
    """Yield names and statistics of the lengths of pairs, and of their margins if they have any."""
    margins = (
        replace(row, rewards=None if row.rewards is None else row.rewards[:1]) for row in pairs.rows
    )
    for name, text in dataset_statistics(margins).named():
        yield "margins" if name == "rewards" else name, text


def as_format(tokenizer: PreTrainedTokenizerBase, config: RewardConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer that writes as `config.prompt_format` says, with a padding token.

    It is saved with the model: "plain" leaves it without a chat template, so that scoring, which
    takes the template if there is one, writes the same.

    Raises:
        InputError: there is no template, or no token to pad with.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if config.prompt_format == "plain":
        tokenizer.chat_template = None
    elif config.prompt_format == "chat" and not tokenizer.chat_template:
        raise InputError("prompt_format", "a tokenizer with a chat template for 'chat'", "none")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            expected = "a tokenizer with a padding token: the head takes the last token before it"
            raise InputError("processing_class", expected, "one with neither it nor EOS")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _pairs(
    source: Any, name: str, config: RewardConfig, tokenizer: PreTrainedTokenizerBase
) -> PairDataset:
    report = DataReport()
    if not (isinstance(source, list) and source and isinstance(source[0], Record)):
        source = iter_records(source, bad_rows=config.bad_rows, report=report)

    def convert(record: Record) -> list[TokenizedRow]:
        pairs = as_pairs([_tokenize(record, config, tokenizer, report)], report)
        return [_with_margin(pair, record, config) for pair in pairs]

    found = keep_good(source, convert, report, config.bad_rows)
    rows = [row for pairs in found for row in pairs]
    pairs = PairDataset(rows)
    _check_margins(rows)
    report.rows, report.responses = len(rows), 2 * len(rows)
    say(config, f"{name}: {report.describe()}")
    for what, text in pair_statistics(pairs):
        say(config, f"  {what}: {text}")
    for skipped in report.skipped:
        logger.warning("skipped %s", skipped)
    if not rows:
        raise NoRowsError(name, "no record holds a pair of a better and a worse response")
    return pairs


def _tokenize(
    record: Record,
    config: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    report: DataReport,
) -> TokenizedRow:
    """Encode each response with the prompt; those that do not fit are cut, or dropped."""
    sequences = [
        encode(tokenizer, record.prompt, response, record.where, record.tools)
        for response in record.responses
    ]
    limit = config.max_length
    fits = [len(sequence) <= limit for sequence in sequences]
    if config.truncate_responses:
        report.responses_truncated += fits.count(False)
        kept = list(range(len(sequences)))
    else:
        report.responses_dropped += fits.count(False)
        kept = [number for number, fit in enumerate(fits) if fit]
    chosen = [sequences[number][:limit] for number in kept]
    if not kept:
        problem = f"none of its {len(sequences)} responses fits max_length={limit}"
        raise DataError(record.where, problem, "Raise max_length or set truncate_responses=True.")
    start = _shared_start(chosen)
    if not start:
        problem = "its responses, each with the prompt, have no first token in common"
        raise DataError(record.where, problem)
    rewards, preferred = record.rewards, record.preferred
    return TokenizedRow(
        torch.tensor(chosen[0][:start], dtype=torch.int32),
        [torch.tensor(sequence[start:], dtype=torch.int32) for sequence in chosen],
        None if rewards is None else [rewards[number] for number in kept],
        None if preferred is None else [preferred[number] for number in kept],
        record.where,
    )


def _shared_start(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all begin with, leaving at least one of each."""
    shortest = min(map(len, sequences))
    columns = zip(*(sequence[: shortest - 1] for sequence in sequences), strict=True)
    return next((n for n, column in enumerate(columns) if len(set(column)) > 1), shortest - 1)


def _with_margin(pair: TokenizedRow, record: Record, config: RewardConfig) -> TokenizedRow:
    if config.margin == "rewards":
        if pair.rewards is None:
            fix = "Score the responses first, or pass margin='none'."
            raise DataError(record.where, "no rewards, whose difference is the margin", fix)
        margin: float | None = pair.rewards[0] - pair.rewards[1]
    else:
        margin = record.margin if config.margin == "column" else None
    return replace(pair, rewards=None if margin is None else [margin, 0.0])


def _check_margins(rows: Sequence[TokenizedRow]) -> None:
    lacking = [row.where for row in rows if row.rewards is None]
    if lacking and len(lacking) < len(rows):
        fix = "Give all or none, or pass margin='none'."
        raise DataError(lacking[0], "no `margin`, which other records have", fix)
