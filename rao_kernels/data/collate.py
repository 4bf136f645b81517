"""A dataset of tokenized records, and the collator that makes micro-batches of them.

Legend: P prompts, S sequences (all responses of the P prompts), T tokens of the longest sequence,
N tokens of all, M reward models, K reference samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError
from ..sequence import SequenceBatch
from .layout import Layout
from .tokenized import TokenizedRow

# Inputs of a loss that a micro-batch holds besides the policy's log-probs, by what they have a
# value of. The values of tokens stand where the token is predicted, in tensors like the ids.
_OF_TOKENS = ("old_token_logps", "advantages", "returns", "old_values")
_OF_RESPONSES = ("rewards", "preferred", "gold")
_OF_THE_REFERENCE = ("ref_logps", "ref_prompt_logps", "ref_token_logps", "ref_kl_logps")
LOSS_FIELDS = (
    *_OF_RESPONSES,
    *_OF_THE_REFERENCE,
    *_OF_TOKENS,
    *("reward_ensemble", "ref_rewards", "ref_reward_groups"),
)
# Inputs that only sampling with the model in training gives.
ROLLOUT_FIELDS = ("advantages", "returns", "old_values")
# Inputs that follow from the batch's layout and from passes through the model.
_OF_THE_PASS = (
    *("groups", "prompt_logps", "token_entropy", "token_log_sum_sq", "values", "kl_logps"),
)


def unmet_needs(needs: Iterable[str], *, rollouts: bool = False) -> list[str]:
    """Return the needs of a loss that training on records cannot meet.

    Args:
        needs: names of inputs; ``a|b`` is met by either, see `LossSpec.needs`.
        rollouts: True for records that the model in training has just sampled.
    """
    met = {*LOSS_FIELDS, *_OF_THE_PASS} - set(() if rollouts else ROLLOUT_FIELDS)
    return [need for need in needs if not met & set(need.split("|"))]


@dataclass(frozen=True)
class Reference:
    """Log-probabilities of one record under the reference, in nats.

    prompt: sum over the prompt after t0. responses: ``[responses]`` fp64 sums.
    tokens: ``[responses * longest]`` fp32 values of its right-padded ids (longest: tokens of its
    longest sequence), flattened, 0 where no token is scored; None where they are not kept.
    kl: ``[responses]`` fp64 sums of the mismatched responses (`TokenizedRow.kl_responses`); None
    without these.
    """

    prompt: float
    responses: Tensor
    tokens: Tensor | None = None
    kl: Tensor | None = None


@dataclass(frozen=True)
class Example:
    """One prompt with all its responses, as the collator takes it: a group is never split."""

    row: TokenizedRow
    reference: Reference | None


class PreferenceDataset(Dataset[Example]):
    """Tokenized records, with their reference log-probabilities once these are known.

    rows: in memory, or `StoredRows` on disk. reported: whether what was loaded was printed.
    """

    reported = False

    def __init__(self, rows: Sequence[TokenizedRow]) -> None:
        self.rows = rows
        self.references: Sequence[Reference] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        reference = None if self.references is None else self.references[index]
        return Example(self.rows[index], reference)

    def fingerprint(self) -> str:
        """Return the SHA-256 of every token id and boundary, in order, and of what is scored."""
        digest = hashlib.sha256()
        for row in self.rows:
            for ids in (row.prompt, *row.responses):
                digest.update(len(ids).to_bytes(4, "little"))
                digest.update(ids.numpy().tobytes())
            digest.update(b"|")
            for name, extra in (("kl", row.kl_responses), ("masks", row.masks)):
                for tensor in extra or ():
                    digest.update(f"{name} {len(tensor)} ".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Collator:
    """Makes a micro-batch of examples: ids, and the index tensors of their tokens.

    The micro-batch is a dict, which a `DataLoader` and accelerate move as they do tensors:

    * ``input_ids``, ``attention_mask``: ``[S, T]`` int64, padded on the right; or with `packing`
      ``input_ids``, ``position_ids``: ``[1, N]``, all sequences one after another.
    * ``sequences``: the `SequenceBatch`, whose groups are the prompts in order.
    * where known, ``rewards`` ``[S]`` fp32; ``preferred``, ``gold`` ``[S]`` bool;
      ``reward_ensemble`` ``[M, S]`` and ``ref_rewards`` ``[K]`` fp32, with ``ref_reward_groups``
      ``[K]``; ``ref_logps``, ``ref_prompt_logps`` and ``ref_kl_logps`` ``[S]`` fp64, which sums
      over many tokens need.
    * where known, ``ref_token_logps`` and the inputs of `TokenizedRow.token_inputs`, shaped like
      the ids, fp32: position i has the value of the token that it predicts, i + 1.
    * for KTO, the same prompts with responses to others: ``kl_input_ids``, ``kl_attention_mask`` or
      ``kl_position_ids``, and ``kl_sequences``.

    Attributes:
        pad_token_id: fills `input_ids` behind a sequence.
        prefix_length: tokens at the beginning of each prompt that are not scored, at least 1.
        packing: lay sequences one after another, without padding. The model must tell them apart
            by their positions (`hf.check_packing`).
    """

    pad_token_id: int
    prefix_length: int = 1
    packing: bool = False

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        rows = [example.row for example in examples]
        pairs = [(row.prompt, response) for row in rows for response in row.responses]
        layout = Layout.of(pairs, packing=self.packing)
        masks: list[Tensor | None] = []
        for row in rows:
            masks += row.masks or [None] * len(row.responses)
        batch: dict[str, Any] = dict(layout.model_inputs(self.pad_token_id))
        groups = _repeat(torch.arange(len(rows)), rows)
        batch["sequences"] = layout.sequences(batch["input_ids"], groups, self.prefix_length, masks)
        batch |= _response_tensors(rows) | _prompt_tensors(rows) | _token_tensors(rows, layout)
        if _all_have("kl_responses", rows):
            batch |= self._mismatched(rows)
        references = [example.reference for example in examples if example.reference is not None]
        if len(references) == len(examples):
            batch |= _reference_tensors(references, rows, layout)
        return batch

    def _mismatched(self, rows: Sequence[TokenizedRow]) -> dict[str, Any]:
        """Return the batch of prompts with responses to others; each is a group of its own."""
        pairs = [(row.prompt, response) for row in rows for response in row.kl_responses or ()]
        layout = Layout.of(pairs, packing=self.packing)
        inputs = layout.model_inputs(self.pad_token_id)
        groups = torch.arange(len(pairs))
        sequences = layout.sequences(
            inputs["input_ids"], groups, self.prefix_length, [None] * len(pairs)
        )
        named = {f"kl_{name}": tensor for name, tensor in inputs.items()}
        return {**named, "kl_sequences": sequences}


def first_prompts(batch: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return what a micro-batch of `Collator` holds of its first `count` prompts.

    Reads the number of their sequences on the host.
    """
    kept = int((batch["sequences"].groups < count).sum())

    def cut(name: str, value: Any) -> Any:
        if isinstance(value, SequenceBatch):
            return value.first(kept)
        if name in ("ref_rewards", "ref_reward_groups"):
            return value[batch["ref_reward_groups"] < count]
        # Packed ids are one row, which stays.
        return value[:, :kept] if name == "reward_ensemble" else value[:kept]

    return {name: cut(name, value) for name, value in batch.items()}


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


def _response_tensors(rows: Sequence[TokenizedRow]) -> dict[str, Tensor]:
    """Return what is known of each response, ``[S]`` or ``[M, S]``."""
    tensors = {}
    if _all_have("rewards", rows):
        rewards = [reward for row in rows for reward in row.rewards or ()]
        tensors["rewards"] = torch.tensor(rewards, dtype=torch.float32)
    if _all_have("preferred", rows):
        tensors["preferred"] = torch.tensor([mark for row in rows for mark in row.preferred or ()])
    if _all_have("gold_marks", rows):
        tensors["gold"] = torch.tensor([mark for row in rows for mark in row.gold_marks or ()])
    if _all_have("reward_ensemble", rows):
        models = [len(row.reward_ensemble or ()) for row in rows]
        for row, count in zip(rows, models, strict=True):
            if count != models[0]:
                problem = f"rewards of {count} models, where other records have {models[0]}"
                raise DataError(row.where, problem, "Score all records with the same models.")
        columns = [torch.tensor(row.reward_ensemble, dtype=torch.float32) for row in rows]
        tensors["reward_ensemble"] = torch.cat(columns, 1)
    return tensors


def _prompt_tensors(rows: Sequence[TokenizedRow]) -> dict[str, Tensor]:
    """Return the rewards of the prompts' reference samples, ``[K]``, and their prompts."""
    if not _all_have("ref_rewards", rows):
        return {}
    rewards = [reward for row in rows for reward in row.ref_rewards or ()]
    owners = [number for number, row in enumerate(rows) for _ in row.ref_rewards or ()]
    return {
        "ref_rewards": torch.tensor(rewards, dtype=torch.float32),
        "ref_reward_groups": torch.tensor(owners, dtype=torch.int64),
    }


def _token_tensors(rows: Sequence[TokenizedRow], layout: Layout) -> dict[str, Tensor]:
    """Return the inputs with a value per response token."""
    tensors = {}
    for name in dict.fromkeys(name for row in rows for name in row.token_inputs):
        for row in rows:
            if name not in row.token_inputs:
                fix = "Give all or none."
                raise DataError(row.where, f"no {name}, which other records have", fix)
        values = [value for row in rows for value in row.token_inputs[name]]
        tensors[name] = layout.at_predictions(values)
    return tensors


def _reference_tensors(
    references: Sequence[Reference], rows: Sequence[TokenizedRow], layout: Layout
) -> dict[str, Tensor]:
    prompts = torch.tensor([reference.prompt for reference in references], dtype=torch.float64)
    tensors = {
        "ref_logps": torch.cat([reference.responses for reference in references]),
        "ref_prompt_logps": _repeat(prompts, rows),
    }
    mismatched = [reference.kl for reference in references if reference.kl is not None]
    if len(mismatched) == len(references):
        tensors["ref_kl_logps"] = torch.cat(mismatched)
    tokens = [reference.tokens for reference in references if reference.tokens is not None]
    if len(tokens) == len(references):
        # Each record's are padded to its own longest sequence.
        padded = [
            one
            for row, values in zip(rows, tokens, strict=True)
            for one in values.view(len(row.responses), -1)
        ]
        lengths = [len(prompt) + len(response) for prompt, response in layout.pairs]
        values = [one[:length] for one, length in zip(padded, lengths, strict=True)]
        tensors["ref_token_logps"] = layout.place(values, [0] * len(values), 0.0, torch.float32)
    return tensors
