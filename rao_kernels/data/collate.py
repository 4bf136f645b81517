"""A dataset of tokenized records, and the collator that makes micro-batches of them.

Legend: P prompts, S sequences (all responses of the P prompts), T tokens of the longest sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError
from ..sequence import SequenceBatch
from .tokenized import TokenizedRow

# Inputs of a loss that a micro-batch holds besides the policy's log-probs.
LOSS_FIELDS = ("rewards", "preferred", "ref_logps", "ref_prompt_logps", "ref_token_logps")
# Inputs that follow from the batch's layout and from the pass through the model.
_OF_THE_PASS = ("groups", "prompt_logps", "token_entropy", "token_log_sum_sq")


def unmet_needs(needs: Iterable[str]) -> list[str]:
    """Return the needs of a loss that training on records cannot meet.

    needs: names of inputs; ``a|b`` is met by either, see `LossSpec.needs`.
    """
    met = {*LOSS_FIELDS, *_OF_THE_PASS}
    return [need for need in needs if not met & set(need.split("|"))]


@dataclass(frozen=True)
class Reference:
    """Log-probabilities of one record under the reference, in nats.

    prompt: sum over the prompt after t0. responses: ``[responses]`` fp64 sums.
    tokens: ``[responses * longest]`` fp32 values of its right-padded ids (longest: tokens of its
    longest sequence), flattened, 0 where no token is scored; None where they are not kept.
    """

    prompt: float
    responses: Tensor
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Example:
    """One prompt with all its responses, as the collator takes it: a group is never split."""

    row: TokenizedRow
    reference: Reference | None


class PreferenceDataset(Dataset[Example]):
    """Tokenized records, with their reference log-probabilities once these are known.

    rows: in memory, or `StoredRows` on disk.
    """

    def __init__(self, rows: Sequence[TokenizedRow]) -> None:
        self.rows = rows
        self.references: Sequence[Reference] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        reference = None if self.references is None else self.references[index]
        return Example(self.rows[index], reference)

    def fingerprint(self) -> str:
        """Return the SHA-256 of every token id and boundary, in order."""
        digest = hashlib.sha256()
        for row in self.rows:
            for ids in (row.prompt, *row.responses):
                digest.update(len(ids).to_bytes(4, "little"))
                digest.update(ids.numpy().tobytes())
            digest.update(b"|")
        return digest.hexdigest()


@dataclass(frozen=True)
class Collator:
    """Makes a micro-batch of examples: right-padded tensors, and the index tensors of its tokens.

    The micro-batch is a dict, which a `DataLoader` and accelerate move as they do tensors:

    * ``input_ids``, ``attention_mask``: ``[S, T]`` int64.
    * ``sequences``: the `SequenceBatch`, whose groups are the prompts in order.
    * where known, ``rewards`` ``[S]`` fp32; ``preferred`` ``[S]`` bool; ``ref_logps`` and
      ``ref_prompt_logps`` ``[S]`` fp64, which sums over many tokens need; ``ref_token_logps``
      ``[S, T]`` fp32.

    Attributes:
        pad_token_id: fills `input_ids` behind a sequence.
        prefix_length: tokens at the beginning of each prompt that are not scored, at least 1.
    """

    pad_token_id: int
    prefix_length: int = 1

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        rows = [example.row for example in examples]
        batch = self._pad(rows)
        if _all_have("rewards", rows):
            rewards = [reward for row in rows for reward in row.rewards or ()]
            batch["rewards"] = torch.tensor(rewards, dtype=torch.float32)
        if _all_have("preferred", rows):
            marks = [mark for row in rows for mark in row.preferred or ()]
            batch["preferred"] = torch.tensor(marks)
        references = [example.reference for example in examples if example.reference is not None]
        if len(references) == len(examples):
            batch |= _reference_tensors(references, rows, batch["input_ids"].shape)
        return batch

    def _pad(self, rows: Sequence[TokenizedRow]) -> dict[str, Any]:
        pairs = [(row.prompt, response) for row in rows for response in row.responses]
        shape = (len(pairs), max(len(prompt) + len(response) for prompt, response in pairs))
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        for s, (prompt, response) in enumerate(pairs):
            end = len(prompt) + len(response)
            input_ids[s, :end] = torch.cat([prompt, response])
            attention_mask[s, :end] = 1
        sequences = SequenceBatch.from_lengths(
            input_ids,
            prompt_lengths=torch.tensor([len(prompt) for prompt, _ in pairs]),
            lengths=attention_mask.sum(1),
            groups=_repeat(torch.arange(len(rows)), rows),
            prefix_length=self.prefix_length,
        )
        # The ids come first: transformers takes a batch's size from its first tensor.
        return {"input_ids": input_ids, "attention_mask": attention_mask, "sequences": sequences}


def _all_have(name: str, rows: Sequence[TokenizedRow]) -> bool:
    """Return True if all records have the field, False if none has; raise if only some have it.

    The meaning of a loss may depend on it, so that micro-batches would be trained differently.
    """
    lacking = [row.where for row in rows if getattr(row, name) is None]
    if lacking and len(lacking) < len(rows):
        raise DataError(lacking[0], f"no {name}, which other records have", "Give all or none.")
    return not lacking


def _repeat(values: Tensor, rows: Sequence[TokenizedRow]) -> Tensor:
    return values.repeat_interleave(torch.tensor([len(row.responses) for row in rows]))


def _reference_tensors(
    references: Sequence[Reference], rows: Sequence[TokenizedRow], shape: torch.Size
) -> dict[str, Tensor]:
    prompts = torch.tensor([reference.prompt for reference in references], dtype=torch.float64)
    tensors = {
        "ref_logps": torch.cat([reference.responses for reference in references]),
        "ref_prompt_logps": _repeat(prompts, rows),
    }
    tokens = [reference.tokens for reference in references if reference.tokens is not None]
    if len(tokens) == len(references):
        padded = torch.zeros(shape, dtype=torch.float32)
        first = 0
        for row, values in zip(rows, tokens, strict=True):
            block = values.view(len(row.responses), -1)
            padded[first : first + len(block), : block.shape[1]] = block
            first += len(block)
        tensors["ref_token_logps"] = padded
    return tensors
