"""The micro-batch: padded ids, index tensors as from masks, whole groups, fp32 floats."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader

from rao_kernels.data import (
    Collator,
    Example,
    PreferenceDataset,
    Reference,
    TokenizedRow,
    TokenizeOptions,
    first_prompts,
    load_records,
    tokenize_records,
)
from rao_kernels.errors import DataError
from rao_kernels.sequence import SequenceBatch
from tests.train.rich import rich_dataset
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


def rich_batch(*, packing: bool, gold: bool = True) -> tuple[list[TokenizedRow], dict[str, Any]]:
    data = rich_dataset(3, gold=gold)
    rows = [
        replace(row, masks=[torch.arange(len(ids)) % 2 == 0 for ids in row.responses])
        for row in data.rows
    ]
    batch = Collator(0, packing=packing)([Example(row, None) for row in rows])
    return rows, batch


@pytest.mark.parametrize("packing", [False, True])
def test_values_of_tokens_stand_where_the_token_is_predicted(packing: bool) -> None:
    rows, batch = rich_batch(packing=packing)
    sequences = batch["sequences"]
    inputs = sequences.row_loss_inputs(
        torch.zeros(len(sequences.response_rows)), None, old_token_logps=batch["old_token_logps"]
    )
    masks = [mask for row in rows for mask in row.masks or ()]
    values = [one for row in rows for one in row.token_inputs["old_token_logps"]]
    targets = [ids for row in rows for ids in row.responses]
    kept = [
        torch.cat([v[m] for v, m in zip(some, masks, strict=True)]) for some in (values, targets)
    ]
    assert torch.equal(inputs.old_token_logps, kept[0])
    assert torch.equal(sequences.response_targets, kept[1].long())
    assert batch["old_token_logps"].dtype == torch.float32


def test_packed_sequences_are_those_of_their_masks() -> None:
    rows, batch = rich_batch(packing=True)
    ids = [torch.cat([row.prompt, response]) for row in rows for response in row.responses]
    assert torch.equal(batch["input_ids"], torch.cat(ids).long()[None])
    assert torch.equal(batch["position_ids"], torch.cat([torch.arange(len(i)) for i in ids])[None])
    assert "attention_mask" not in batch
    edges = torch.tensor([0, *(len(one) for one in ids)]).cumsum(0)
    marks = [
        torch.cat([torch.zeros(len(row.prompt), dtype=torch.bool), mask])
        for row in rows
        for mask in row.masks or ()
    ]
    expected = SequenceBatch.from_packed(
        batch["input_ids"][0], torch.cat(marks), edges, groups=batch["sequences"].groups
    )
    found = replace(batch["sequences"], token_shape=expected.token_shape)
    assert batch["sequences"].token_shape == (1, len(batch["input_ids"][0]))
    assert_same_batch(found, expected)


def test_what_records_hold_beside_rewards() -> None:
    rows, batch = rich_batch(packing=False)
    assert batch["gold"].tolist() == [False, False, True] * 3
    assert batch["reward_ensemble"].shape == (2, 9)
    assert batch["reward_ensemble"][1, 3:6].tolist() == pytest.approx(rows[1].reward_ensemble[1])
    assert batch["ref_reward_groups"].tolist() == [0, 1, 1, 2, 2, 2]
    assert batch["ref_rewards"][1:3].tolist() == pytest.approx(rows[1].ref_rewards)
    kl, s = batch["kl_sequences"], 4
    assert kl.groups.tolist() == list(range(9))
    assert torch.equal(
        kl.response_targets[kl.response_segments == s], rows[1].kl_responses[1].long()
    )
    length = len(rows[1].prompt) + len(rows[1].kl_responses[1])
    assert batch["kl_attention_mask"][s].sum() == length
    assert torch.equal(batch["kl_input_ids"][s, : len(rows[1].prompt)], rows[1].prompt.long())


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_first_prompts_are_a_batch_of_them(packing: bool, count: int) -> None:
    rows, batch = rich_batch(packing=packing)
    found = first_prompts(batch, count)
    expected = Collator(0, packing=packing)([Example(row, None) for row in rows[:count]])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            cut = found[name]
            if value.shape != cut.shape:
                # Tokens behind the last sequence stay: padding, or packed and of no sequence.
                cut = cut[..., : value.shape[-1]]
            assert torch.equal(cut, value), name
    for name in ("sequences", "kl_sequences"):
        for field in ("groups", "leaders", "response_targets", "response_segments", "lengths"):
            assert torch.equal(getattr(found[name], field), getattr(expected[name], field)), field
        rows_of = found[name].response_rows
        ids = found[name.replace("sequences", "input_ids")].flatten()
        assert torch.equal(ids[rows_of + 1], expected[name].response_targets)
        assert found[name].prompt_end_rows.shape == expected[name].prompt_end_rows.shape


def test_records_of_other_inputs_are_an_error() -> None:
    rows = rich_dataset(2).rows
    lacking = replace(rows[1], token_inputs={})
    fewer = replace(rows[1], reward_ensemble=rows[1].reward_ensemble[:1])
    for second, problem in ((lacking, "no old_token_logps"), (fewer, "rewards of 1 models")):
        with pytest.raises(DataError, match=problem):
            Collator(0)([Example(rows[0], None), Example(second, None)])


def test_the_fingerprint_sees_what_is_scored() -> None:
    rows = rich_dataset(2).rows
    masks = [torch.ones(len(ids), dtype=torch.bool) for ids in rows[0].responses]
    others = [
        replace(rows[0], kl_responses=None),
        replace(rows[0], kl_responses=rows[0].kl_responses[::-1]),
        replace(rows[0], masks=masks),
        replace(rows[0], masks=[~mask for mask in masks]),
    ]
    found = {PreferenceDataset([row, rows[1]]).fingerprint() for row in (rows[0], *others)}
    assert len(found) == 5
