"""Prompts that a model samples responses to, with the columns that rewards may read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..data import DataReport, PreferenceDataset, Prompt, Record, TokenizedRow
from ..data.messages import join_prompt
from ..data.records import keep_good
from ..data.sources import Row, read_rows
from ..errors import DataError
from ..generation import prompt_ids
from .online_config import OnlineConfig
from .prepare import NoRowsError, logger, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Columns of the responses that a record had; a round's record has its own in their place.
_REPLACED = (
    *("prompt", "responses", "rewards", "finished", "prompt_ids", "response_ids", "old_logps"),
    *("chosen", "rejected", "score_chosen", "score_rejected", "completion", "label", "preferred"),
    *("messages", "text", "reward_ensemble", "generator", "scorer", "online"),
)


@dataclass(frozen=True)
class PromptRecord:
    """A prompt.

    ids: its tokens, which responses are sampled after. gold, gold_ids: the gold answer and its
    tokens, where the loss reads one. columns: the other columns of its record.
    """

    prompt: Prompt
    ids: list[int]
    where: str
    columns: dict[str, Any]
    gold: str | None = None
    gold_ids: list[int] | None = None


class PromptDataset(PreferenceDataset):
    """Prompts as a dataset of records without responses."""

    def __init__(self, prompts: list[PromptRecord]) -> None:
        self.prompts = prompts
        ids = [torch.tensor(one.ids, dtype=torch.int32) for one in prompts]
        super().__init__(
            [
                TokenizedRow(own, [], None, None, one.where)
                for own, one in zip(ids, prompts, strict=True)
            ]
        )

    def digest(self) -> str:
        """Return the SHA-256 of everything the prompts' records hold."""
        digest = hashlib.sha256()
        for one in self.prompts:
            digest.update(json.dumps([one.prompt, one.ids, one.gold_ids, one.columns]).encode())
        return digest.hexdigest()


def load_prompts(
    source: Any, name: str, args: OnlineConfig, tokenizer: PreTrainedTokenizerBase
) -> PromptDataset:
    """Read prompts from any source of records; the responses that some have are not looked at.

    Raises:
        DataError: a prompt is bad or too long, or lacks the gold answer that the loss needs.
    """
    report = DataReport()
    with_gold = "gold" in args.spec.required_inputs(args.hyperparameters())
    read = partial(_read, args=args, tokenizer=tokenizer, with_gold=with_gold)
    prompts = list(keep_good(read_rows(source), read, report, args.bad_rows))
    for skipped in report.skipped:
        logger.warning("skipped %s", skipped)
    if not prompts:
        raise NoRowsError(name, "holds no usable prompt")
    note = f"; {len(report.skipped)} bad records skipped" if report.skipped else ""
    say(args, f"{name}: {len(prompts)} prompts{note}")
    return PromptDataset(prompts)


def _read(
    row: Row, *, args: OnlineConfig, tokenizer: PreTrainedTokenizerBase, with_gold: bool
) -> PromptRecord:
    where, read = row
    found = read()
    if not isinstance(found, Mapping):
        raise DataError(where, f"a record must be an object, got {type(found).__name__}")
    prompt = join_prompt(where, found.get("prompt"), [])
    columns = {name: value for name, value in found.items() if name not in _REPLACED}
    try:
        columns = dict(json.loads(json.dumps(columns)))
    except (TypeError, ValueError) as error:
        fix = "Remove the column from the data, or turn it into texts or numbers."
        raise DataError(where, f"a column cannot be JSON ({error})", fix) from error
    record = Record(prompt, [], None, where)
    ids = prompt_ids(record, tokenizer, args.prompt_format)
    room = args.max_length - args.max_new_tokens
    if len(ids) > room:
        problem = f"its prompt has {len(ids)} tokens; max_length={args.max_length} leaves {room} "
        problem += f"beside max_new_tokens={args.max_new_tokens}"
        raise DataError(where, problem, "Raise max_length or remove the record.")
    gold = _gold(where, columns) if with_gold else None
    gold_ids = None if gold is None else _answer_ids(gold, ids, tokenizer, args, where)
    return PromptRecord(prompt, ids, where, columns, gold, gold_ids)


def _gold(where: str, columns: Mapping[str, Any]) -> str:
    gold = columns.get("gold")
    if not isinstance(gold, str) or not gold:
        fix = "Give each record the column `gold`, a text."
        raise DataError(where, "no gold answer, which the loss needs", fix)
    return gold


def _answer_ids(
    answer: str,
    prompt: list[int],
    tokenizer: PreTrainedTokenizerBase,
    args: OnlineConfig,
    where: str,
) -> list[int]:
    """Return the tokens of an answer as the model would sample it after the prompt's tokens."""
    ids: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
    ids += [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if len(prompt) + len(ids) > args.max_length:
        problem = f"its prompt and gold answer have {len(prompt) + len(ids)} tokens, more than "
        raise DataError(where, f"{problem}max_length={args.max_length}", "Raise max_length.")
    return ids
