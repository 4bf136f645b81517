"""Rows a batch scores, against a loop over its sequences in plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import pytest
import torch
from torch import Tensor

from rao_kernels.errors import InputError
from rao_kernels.sequence import SequenceBatch

PAD = 99


@dataclass(frozen=True)
class Sequence:
    """Tokens of a prompt, then (token, is response) pairs."""

    prompt: list[int]
    rest: list[tuple[int, bool]]

    @property
    def tokens(self) -> list[int]:
        return self.prompt + [token for token, _ in self.rest]

    @property
    def mask(self) -> list[int]:
        return [0] * len(self.prompt) + [int(own) for _, own in self.rest]


def response(*tokens: int) -> list[tuple[int, bool]]:
    return [(token, True) for token in tokens]


# A tool's output in the middle and at the end, an empty response, prompts of several lengths.
SEQUENCES = [
    Sequence([1, 5, 6, 7], response(10, 11, 12)),
    Sequence([1, 5, 6, 7], [*response(13), (20, False), (21, False), *response(14, 15)]),
    Sequence([1, 8], response(16, 17)),
    Sequence([1, 5, 6, 7], []),
    Sequence([1], [*response(18), (22, False)]),
    Sequence([1, 8], response(19)),
]
GROUPS = torch.tensor([2, 2, 0, 2, 1, 0])


@dataclass
class Expected:
    """(sequence, place of the predicting token, target) of each scored row."""

    response: list[tuple[int, int, int]] = field(default_factory=list)
    prompt: list[tuple[int, int, int]] = field(default_factory=list)


def loop(prefix_length: int, groups: list[int]) -> Expected:
    expected = Expected()
    for s, sequence in enumerate(SEQUENCES):
        for place, (token, own) in enumerate(zip(sequence.tokens, sequence.mask, strict=True)):
            if place and own:
                expected.response.append((s, place - 1, token))
        if groups.index(groups[s]) == s:
            for place in range(prefix_length, len(sequence.prompt)):
                expected.prompt.append((s, place - 1, sequence.prompt[place]))
    return expected


def padded(left: int, right: int) -> tuple[Tensor, Tensor, Tensor]:
    """left, right: extra columns; the rest of the padding of a row goes to the side with more."""
    width = max(len(s.tokens) for s in SEQUENCES) + left + right
    ids = torch.full((len(SEQUENCES), width), PAD)
    mask, attention = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, sequence in enumerate(SEQUENCES):
        size = len(sequence.tokens)
        start = width - right - size if left > right else left
        ids[row, start : start + size] = torch.tensor(sequence.tokens)
        mask[row, start : start + size] = torch.tensor(sequence.mask)
        attention[row, start : start + size] = 1
    return ids, mask, attention


def packed() -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.tensor([token for s in SEQUENCES for token in s.tokens])
    mask = torch.tensor([own for s in SEQUENCES for own in s.mask])
    sizes = torch.tensor([0] + [len(s.tokens) for s in SEQUENCES])
    return ids, mask, sizes.cumsum(0)


def build(layout: str, **options: object) -> tuple[SequenceBatch, list[int]]:
    """The batch, and the flat position at which each sequence starts."""
    if layout == "packed":
        ids, mask, edges = packed()
        return SequenceBatch.from_packed(ids, mask, edges, **options), edges[:-1].tolist()
    left, right = {"right": (0, 0), "left": (1, 0), "both": (2, 3)}[layout]
    ids, mask, attention = padded(left, right)
    starts = attention.argmax(1) + torch.arange(len(ids)) * ids.shape[1]
    return SequenceBatch.from_padded(ids, mask, attention, **options), starts.tolist()


layouts = pytest.mark.parametrize("layout", ["right", "left", "both", "packed"])


@layouts
@pytest.mark.parametrize("prefix_length", [1, 2, 7])
@pytest.mark.parametrize("groups", [None, GROUPS])
def test_rows(layout: str, prefix_length: int, groups: Tensor | None) -> None:
    batch, starts = build(layout, prefix_length=prefix_length, groups=groups)
    names = list(range(len(SEQUENCES))) if groups is None else groups.tolist()
    expected = loop(prefix_length, names)
    for rows, targets, segments, wanted in [
        (batch.response_rows, batch.response_targets, batch.response_segments, expected.response),
        (batch.prompt_rows, batch.prompt_targets, batch.prompt_segments, expected.prompt),
    ]:
        assert rows.tolist() == [starts[s] + place for s, place, _ in wanted]
        assert targets.tolist() == [target for _, _, target in wanted]
        assert segments.tolist() == [s for s, _, _ in wanted]
    assert batch.lengths.tolist() == [sum(s.mask) for s in SEQUENCES]
    assert batch.groups.tolist() == names
    assert batch.num_sequences == len(SEQUENCES)

    targets = [-100] * batch.logp_targets.numel()
    own = [False] * len(targets)
    for s, place, target in expected.response + expected.prompt:
        targets[starts[s] + place] = target
    for s, place, _ in expected.response:
        own[starts[s] + place] = True
    assert batch.logp_targets.flatten().tolist() == targets
    assert batch.logp_grad_mask.flatten().tolist() == own
    assert batch.logp_targets.shape == batch.logp_grad_mask.shape == batch.token_shape


@layouts
def test_loss_inputs(layout: str) -> None:
    batch, starts = build(layout, groups=GROUPS)
    shape = batch.token_shape
    logps, reference = torch.randn(shape, dtype=torch.float64), torch.randn(shape)
    # What has no target is never read.
    logps = logps.masked_fill(batch.logp_targets == -100, torch.nan)
    rewards, advantages = torch.randn(6), torch.randn(shape)
    inputs = batch.loss_inputs(
        logps, ref_token_logps=reference, rewards=rewards, advantages=advantages, values=rewards
    )
    expected = loop(1, GROUPS.tolist())
    sums, prompts = [0.0] * 6, [0.0] * 6
    flat = logps.flatten().tolist()
    for s, place, _ in expected.response:
        sums[s] += flat[starts[s] + place]
    for s, place, _ in expected.prompt:
        prompts[s] += flat[starts[s] + place]
    assert inputs.logps.tolist() == pytest.approx(sums, rel=1e-14)
    leaders = [GROUPS.tolist().index(g) for g in GROUPS.tolist()]
    assert inputs.prompt_logps is not None
    assert inputs.prompt_logps.tolist() == pytest.approx([prompts[s] for s in leaders], rel=1e-14)
    assert inputs.lengths.tolist() == batch.lengths.tolist()
    assert inputs.rewards is rewards
    assert inputs.values is rewards
    for given, found in ((reference, inputs.ref_token_logps), (advantages, inputs.advantages)):
        assert found is not None
        assert torch.equal(found, given.flatten()[batch.response_rows])
    assert inputs.groups is batch.groups


def test_nothing_is_read_on_the_host_once_built() -> None:
    """On the meta device, where there is nothing to read."""
    batch = build("left", groups=GROUPS)[0].to("meta")
    assert batch.logp_targets.is_meta
    assert batch.logp_grad_mask.shape == batch.token_shape
    assert batch.lengths.shape == (6,)
    inputs = batch.loss_inputs(
        torch.zeros(batch.token_shape, device="meta"), rewards=torch.zeros(6, device="meta")
    )
    assert inputs.logps.is_meta
    assert inputs.prompt_logps is not None
    assert inputs.prompt_logps.shape == (6,)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_first_sequences(size: int) -> None:
    ids, mask, attention = padded(1, 0)
    groups = torch.tensor([0, 0, 1, 0, 2, 1])
    found = SequenceBatch.from_padded(ids, mask, attention, groups=groups).first(size)
    arguments = (ids[:size], mask[:size], attention[:size])
    expected = SequenceBatch.from_padded(*arguments, groups=groups[:size])
    for item in fields(SequenceBatch):
        value, wanted = getattr(found, item.name), getattr(expected, item.name)
        if isinstance(wanted, Tensor):
            assert torch.equal(value, wanted), item.name
    assert found.token_shape == expected.token_shape
    low, high = found.target_bounds
    assert low <= expected.target_bounds[0] <= expected.target_bounds[1] <= high


def test_padding_is_never_a_response() -> None:
    ids, mask, attention = padded(2, 3)
    everywhere = SequenceBatch.from_padded(ids, torch.maximum(mask, 1 - attention), attention)
    exact = SequenceBatch.from_padded(ids, mask, attention)
    assert torch.equal(everywhere.response_rows, exact.response_rows)


def test_no_attention_mask_means_no_padding() -> None:
    ids = torch.arange(12).view(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    batch = SequenceBatch.from_padded(ids, mask)
    assert batch.response_targets.tolist() == [2, 3, 4, 5, 11]
    assert batch.prompt_targets.tolist() == [1, 7, 8, 9, 10]
    assert batch.target_bounds == (1, 11)


def test_the_first_token_has_nothing_to_predict_it() -> None:
    ids = torch.arange(1, 5)[None]
    batch = SequenceBatch.from_padded(ids, torch.ones_like(ids))
    assert batch.response_targets.tolist() == [2, 3, 4]
    assert batch.prompt_targets.numel() == 0
    assert batch.lengths.tolist() == [3]


def test_nothing_to_score() -> None:
    ids = torch.tensor([3, 4])
    edges = torch.tensor([0, 1, 1, 2])
    batch = SequenceBatch.from_packed(ids, torch.zeros(2, dtype=torch.bool), edges)
    assert batch.lengths.tolist() == [0, 0, 0]
    inputs = batch.loss_inputs(torch.zeros(2))
    assert inputs.logps.tolist() == [0.0, 0.0, 0.0]
    empty = SequenceBatch.from_padded(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0))
    assert empty.lengths.tolist() == [0, 0]
    assert empty.target_bounds == (0, 0)


def test_strided_ids_and_other_integer_types() -> None:
    ids, mask, attention = padded(0, 0)
    wide = torch.stack([ids, ids + 1], dim=-1)
    strided = SequenceBatch.from_padded(wide[..., 0], mask.bool(), attention.bool())
    small = SequenceBatch.from_padded(ids.int(), mask.float(), attention.to(torch.uint8))
    exact = SequenceBatch.from_padded(ids, mask, attention)
    for batch in (strided, small):
        assert torch.equal(batch.response_targets, exact.response_targets)
        assert torch.equal(batch.prompt_rows, exact.prompt_rows)
        assert batch.logp_targets.dtype == torch.int64


@pytest.mark.parametrize("layout", ["left", "packed"])
@pytest.mark.parametrize(
    ("groups", "match"),
    [
        ([0, 0, 0, 1, 2, 3], "sequence 2 than in sequence 0 of group 0"),
        ([0, 1, 2, 0, 0, 2], "sequence 4 than in sequence 0 of group 0"),
        ([2, 2, 0, 2, 1, 1], "sequence 5 than in sequence 4 of group 1"),
    ],
)
def test_unequal_prompts_name_their_group(layout: str, groups: list[int], match: str) -> None:
    with pytest.raises(InputError, match=match):
        build(layout, groups=torch.tensor(groups))


def test_one_other_token_is_enough() -> None:
    ids = torch.tensor([[1, 2, 3, 9], [1, 4, 3, 9]])
    mask = torch.tensor([[0, 0, 0, 1]]).expand(2, 4)
    SequenceBatch.from_padded(ids, mask)
    with pytest.raises(InputError, match="sequence 1 than in sequence 0 of group 0"):
        SequenceBatch.from_padded(ids, mask, groups=torch.tensor([0, 0]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"input_ids": torch.zeros(6, dtype=torch.int64)}, r"`input_ids`.*\[B, T\]"),
        ({"input_ids": torch.zeros(2, 4)}, "`input_ids`.*int64"),
        ({"input_ids": torch.zeros(0, 4, dtype=torch.int64)}, "`input_ids`|`completion_mask`"),
        ({"completion_mask": torch.zeros(2, 3)}, "`completion_mask`.*like `input_ids`"),
        ({"completion_mask": torch.full((2, 4), 2)}, "`completion_mask`.*zeros and ones"),
        ({"completion_mask": torch.zeros(2, 4, device="meta")}, "`completion_mask`.*device"),
        ({"attention_mask": torch.zeros(2, 5)}, "`attention_mask`.*like `input_ids`"),
        (
            {"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]])},
            "`attention_mask`.*gap in sequence 1",
        ),
        ({"prefix_length": 0}, "`prefix_length`"),
        ({"groups": torch.tensor([0])}, "`groups`.*S = 2"),
        ({"groups": torch.tensor([0, 2])}, "`groups`.*dense"),
        ({"groups": torch.tensor([1, 2])}, "`groups`.*dense"),
        ({"groups": torch.tensor([-1, 0])}, "`groups`.*dense"),
        ({"groups": torch.tensor([0.0, 1.0])}, "`groups`.*int64"),
    ],
)
def test_wrong_padded_arguments(change: dict[str, object], match: str) -> None:
    arguments = {
        "input_ids": torch.ones(2, 4, dtype=torch.int64),
        "completion_mask": torch.zeros(2, 4),
        "attention_mask": torch.ones(2, 4),
        "prefix_length": 1,
        "groups": None,
    }
    with pytest.raises(InputError, match=match):
        SequenceBatch.from_padded(**{**arguments, **change})


def test_no_sequence_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one sequence"):
        SequenceBatch.from_padded(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4))


@pytest.mark.parametrize("edges", [[0, 3], [1, 4], [0, 3, 2, 4], [0], [0, 5]])
def test_wrong_offsets(edges: list[int]) -> None:
    ids = torch.ones(4, dtype=torch.int64)
    with pytest.raises(InputError, match="`cu_seqlens`.*0 to N = 4"):
        SequenceBatch.from_packed(ids, torch.zeros(4), torch.tensor(edges))


def test_wrong_inputs_of_a_loss() -> None:
    batch, _ = build("left")
    logps = torch.zeros(batch.token_shape)
    with pytest.raises(InputError, match="`token_logps`.*like `input_ids`"):
        batch.loss_inputs(logps[:, 1:])
    with pytest.raises(InputError, match="`ref_token_logps`.*like `input_ids`"):
        batch.loss_inputs(logps, ref_token_logps=torch.zeros(6))
    with pytest.raises(InputError, match=r"`reward`.*ref_logps"):
        batch.loss_inputs(logps, reward=torch.zeros(6))
    with pytest.raises(InputError, match="`groups`"):
        batch.loss_inputs(logps, groups=torch.zeros(6))
