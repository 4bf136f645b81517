"""Prompts that a model samples responses to, with the columns that rewards may read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ...data import DataReport, PreferenceDataset, Prompt, TokenizedRow
from ...data.records import NoRowsError, keep_good
from ...errors import DataError
from ...generation import PromptRow, prompt_ids, read_prompts
from ..prepare import logger, say
from ..rows import lacking
from .config import OnlineConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        DataError: a prompt is bad or too long, or lacks the gold answer or the rewards of the
            reference's samples that the loss needs.
    """
    report = DataReport()
    needs = args.spec.required_inputs(args.hyperparameters())
    rows = read_prompts(source, bad_rows=args.bad_rows, report=report)
    read = partial(_read, args=args, tokenizer=tokenizer, needs=needs)
    prompts = list(keep_good(rows, read, report, args.bad_rows))
    for skipped in report.skipped:
        logger.warning("skipped %s", skipped)
    if not prompts:
        raise NoRowsError(name, "holds no usable prompt")
    say(args, f"{name}: {len(prompts)} prompts of {report.describe()}")
    return PromptDataset(prompts)


def _read(
    row: PromptRow,
    *,
    args: OnlineConfig,
    tokenizer: PreTrainedTokenizerBase,
    needs: tuple[str, ...],
) -> PromptRecord:
    record, with_gold = row.record, "gold" in needs
    if "ref_rewards" in needs and not record.ref_rewards:
        raise lacking(record.where, "ref_rewards", args)
    columns = {k: v for k, v in row.columns.items() if k not in ("prompt", "online")}
    try:
        columns = dict(json.loads(json.dumps(columns)))
    except (TypeError, ValueError) as error:
        fix = "Remove the column from the data, or turn it into texts or numbers."
        raise DataError(record.where, f"a column cannot be JSON ({error})", fix) from error
    ids = prompt_ids(record, tokenizer, args.prompt_format)
    room = args.max_length - args.max_new_tokens
    if len(ids) > room:
        problem = f"its prompt has {len(ids)} tokens; max_length={args.max_length} leaves {room} "
        problem += f"beside max_new_tokens={args.max_new_tokens}"
        raise DataError(record.where, problem, "Raise max_length or remove the record.")
    gold = record.gold if with_gold else None
    if with_gold and not (isinstance(gold, str) and gold):
        fix = "Give each record the column `gold`, a text."
        raise DataError(record.where, "no gold answer, which the loss needs", fix)
    assert gold is None or isinstance(gold, str)
    gold_ids = None if gold is None else _answer_ids(gold, ids, tokenizer, args, record.where)
    return PromptRecord(record.prompt, ids, record.where, columns, gold, gold_ids)


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
