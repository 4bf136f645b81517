"""The micro-batch: padded ids, index tensors as from masks, whole groups, fp32 floats."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader

from rao_kernels.data import (
    Collator,
    PreferenceDataset,
    Reference,
    TokenizeOptions,
    load_records,
    tokenize_records,
)
from rao_kernels.errors import DataError
from rao_kernels.sequence import SequenceBatch
from tests.train.tiny import tiny_rows, tiny_tokenizer


def dataset(count: int = 4) -> PreferenceDataset:
    records = load_records(tiny_rows(count))
    return PreferenceDataset(tokenize_records(records, tiny_tokenizer(), TokenizeOptions()))


def test_batch_holds_every_response_of_its_prompts() -> None:
    data = dataset()
    batch = Collator(pad_token_id=0)([data[i] for i in range(4)])
    assert set(batch) == {
        "input_ids",
        "attention_mask",
        "sequences",
        "rewards",
    }
    assert batch["sequences"].groups.tolist() == [0, 0, 1, 1, 1, 2, 3, 3]
    assert batch["rewards"].dtype == torch.float32
    sequence = 0
    for row in data.rows:
        for response, reward in zip(row.responses, row.rewards or [], strict=True):
            length = len(row.prompt) + len(response)
            ids, mask = batch["input_ids"][sequence], batch["attention_mask"][sequence]
            assert ids[:length].tolist() == row.prompt.tolist() + response.tolist()
            assert mask.tolist() == [1] * length + [0] * (len(ids) - length)
            assert batch["rewards"][sequence] == torch.tensor(reward)
            sequence += 1


@pytest.mark.parametrize("prefix_length", [1, 3])
def test_index_tensors_are_those_of_masks(prefix_length: int) -> None:
    data = dataset(7)
    batch = Collator(0, prefix_length)([data[i] for i in range(7)])
    masks = torch.zeros_like(batch["input_ids"])
    starts = [len(row.prompt) for row in data.rows for _ in row.responses]
    ends = batch["attention_mask"].sum(1).tolist()
    for mask, start, end in zip(masks, starts, ends, strict=True):
        mask[start:end] = 1
    expected = SequenceBatch.from_padded(
        batch["input_ids"],
        masks,
        batch["attention_mask"],
        prefix_length=prefix_length,
        groups=torch.tensor([g for g, row in enumerate(data.rows) for _ in row.responses]),
    )
    assert_same_batch(batch["sequences"], expected)


def test_a_loader_and_accelerate_hand_the_batch_on() -> None:
    """Through the pickle of a worker process, and moved to a device."""
    data = dataset(4)
    loader = DataLoader(data, 4, collate_fn=Collator(0), num_workers=1)
    (batch,) = loader
    assert_same_batch(batch["sequences"], Collator(0)([data[i] for i in range(4)])["sequences"])
    moved = send_to_device(batch, torch.device("meta"))
    tensors = [value for value in vars(moved["sequences"]).values() if isinstance(value, Tensor)]
    assert len(tensors) == 9
    assert all(value.is_meta for value in tensors)


def assert_same_batch(found: SequenceBatch, expected: SequenceBatch) -> None:
    for item in fields(SequenceBatch):
        value, wanted = getattr(found, item.name), getattr(expected, item.name)
        same = torch.equal(value, wanted) if isinstance(wanted, Tensor) else value == wanted
        assert same, item.name


def test_reference_values_arrive_unrounded() -> None:
    data = dataset(2)
    values = torch.tensor([-351.37, -351.41, -0.1], dtype=torch.float64)
    tokens = []
    for row in data.rows:
        lengths = torch.tensor([[len(row.prompt) + len(one)] for one in row.responses])
        padded = torch.rand(len(lengths), int(lengths.max()))
        tokens.append(padded.where(torch.arange(padded.shape[1]) < lengths, 0.0).flatten())
    data.references = [
        Reference(-7.3, values[:2], tokens[0]),
        Reference(-9.1, values, tokens[1]),
    ]
    batch = Collator(0)([data[1], data[0]])
    assert torch.equal(batch["ref_logps"], torch.cat([values, values[:2]]))
    assert torch.equal(
        batch["ref_prompt_logps"], torch.tensor([-9.1] * 3 + [-7.3] * 2, dtype=torch.float64)
    )
    for own, found in ((tokens[1].view(3, -1), slice(3)), (tokens[0].view(2, -1), slice(3, None))):
        assert torch.equal(batch["ref_token_logps"][found, : own.shape[1]], own)
    assert batch["ref_token_logps"].shape == batch["input_ids"].shape


def test_labels_of_some_rows_only_are_an_error() -> None:
    """Without its labels a micro-batch would train another objective."""
    data = dataset(2)
    for name in ("rewards", "preferred"):
        values = [0.0] * len(data.rows[0].responses)
        rows = [replace(data.rows[0], **{name: values}), replace(data.rows[1], **{name: None})]
        mixed = PreferenceDataset(rows)
        with pytest.raises(DataError, match=f"row 1: no {name}, which other records have"):
            Collator(0)([mixed[0], mixed[1]])


def test_preferred_is_marked() -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2
    data = PreferenceDataset(
        tokenize_records(load_records(rows), tiny_tokenizer(), TokenizeOptions())
    )
    batch = Collator(0)([data[0], data[1]])
    assert batch["preferred"].tolist() == [True, False, True, False]
    assert "rewards" not in batch


def test_fingerprint_sees_ids_order_and_boundary() -> None:
    data = dataset()
    same, other = dataset(), dataset()
    other.rows.reverse()
    assert data.fingerprint() == same.fingerprint()
    assert data.fingerprint() != other.fingerprint()
