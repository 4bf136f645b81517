"""Which rows of the hidden states are scored, and how token log-probs become sequence log-probs.

Legend: B x T padded, or N packed, token positions; S sequences; R response tokens; Q prompt
tokens. Position i predicts the token at i + 1 of the same sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .errors import InputError
from .losses import LossInputs
from .losses._inputs import FIELD_SHAPES
from .segments import segment_lengths, segment_sum

IGNORE = -100
_OWN_FIELDS = ("token_logps", "segments", "num_sequences", "prompt_logps", "groups")


@dataclass(frozen=True, eq=False)
class SequenceBatch:
    """Token sequences, each a prompt and a response to it, ready to be scored.

    The response is what `completion_mask` marks, the prompt what stands before its first token;
    other tokens (a tool's output) are neither. The first token of a sequence has no position
    that predicts it and is never scored. The prompt is scored from its token `prefix_length` on
    and once per group, on the group's first sequence.

    Built by `from_padded` or `from_packed`, which check their arguments; that reads tensors on
    the host. Nothing afterwards does.

    Attributes:
        token_shape: ``(B, T)`` or ``(N,)``: shape of tensors with one entry per position.
        groups: ``[S]`` which prompt each sequence answers, dense from 0.
        leaders: ``[S]`` first sequence of each one's group.
        response_rows, prompt_rows: ``[R]``, ``[Q]`` flat positions that predict those tokens.
        response_targets, prompt_targets: ``[R]``, ``[Q]`` the tokens.
        response_segments, prompt_segments: ``[R]``, ``[Q]`` their sequences, ascending.
        target_bounds: smallest and largest of these tokens; (0, 0) without any.
    """

    token_shape: tuple[int, ...]
    groups: Tensor
    leaders: Tensor
    response_rows: Tensor
    response_targets: Tensor
    response_segments: Tensor
    prompt_rows: Tensor
    prompt_targets: Tensor
    prompt_segments: Tensor
    target_bounds: tuple[int, int]

    @classmethod
    def from_padded(
        cls,
        input_ids: Tensor,
        completion_mask: Tensor,
        attention_mask: Tensor | None = None,
        *,
        prefix_length: int = 1,
        groups: Tensor | None = None,
    ) -> SequenceBatch:
        """One sequence per row of ``[B, T]``; padding (attention 0) on either side or both."""
        _check_ids("input_ids", input_ids, "[B, T]", 2)
        rows, width = input_ids.shape
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        present = _as_mask("attention_mask", attention_mask, input_ids)
        lengths = present.sum(1)
        starts = present.to(torch.int8).argmax(1) if width else lengths
        columns = torch.arange(width, device=input_ids.device)
        run = (columns >= starts[:, None]) & (columns < (starts + lengths)[:, None])
        broken = (run != present).any(1)
        if bool(broken.any()):
            raise InputError(
                "attention_mask",
                "one run of ones in each row",
                f"a gap in row {_first(broken)}",
            )
        starts = starts + torch.arange(rows, device=input_ids.device) * width
        mask = _as_mask("completion_mask", completion_mask, input_ids)
        return cls._build(input_ids, mask, starts, starts + lengths, prefix_length, groups)

    @classmethod
    def from_packed(
        cls,
        input_ids: Tensor,
        completion_mask: Tensor,
        cu_seqlens: Tensor,
        *,
        prefix_length: int = 1,
        groups: Tensor | None = None,
    ) -> SequenceBatch:
        """Sequences one after another in ``[N]``; number s is ``cu_seqlens[s:s + 2]``."""
        _check_ids("input_ids", input_ids, "[N]", 1)
        _check_ids("cu_seqlens", cu_seqlens, "[S + 1]", 1)
        edges = cu_seqlens.to(device=input_ids.device, dtype=torch.int64)
        size = input_ids.numel()
        if (
            edges.numel() < 2
            or edges[0] != 0
            or edges[-1] != size
            or bool((edges.diff() < 0).any())
        ):
            raise InputError(
                "cu_seqlens", f"ascending offsets from 0 to N = {size}", edges.tolist()
            )
        mask = _as_mask("completion_mask", completion_mask, input_ids)
        return cls._build(input_ids, mask, edges[:-1], edges[1:], prefix_length, groups)

    @classmethod
    def _build(
        cls,
        input_ids: Tensor,
        completion_mask: Tensor,
        starts: Tensor,
        ends: Tensor,
        prefix_length: int,
        groups: Tensor | None,
    ) -> SequenceBatch:
        """From flat sequences ``starts[s] <= position < ends[s]``."""
        if prefix_length < 1:
            raise InputError("prefix_length", "at least 1 (the first token)", prefix_length)
        if starts.numel() == 0:
            raise InputError("input_ids", "at least one sequence", list(input_ids.shape))
        ids = input_ids.reshape(-1).to(torch.int64)
        groups, leaders = _check_groups(groups, starts)
        # Flat positions of real tokens, the sequence of each and its place in the sequence.
        lengths = ends - starts
        sequence = torch.repeat_interleave(lengths)
        skipped = starts - (lengths.cumsum(0) - lengths)
        position = torch.arange(sequence.numel(), device=ids.device) + skipped[sequence]
        place = position - starts[sequence]
        response = completion_mask.reshape(-1)[position]
        prompt_ends = ends.scatter_reduce(0, sequence[response], position[response], "amin")
        prompt = position < prompt_ends[sequence]
        _check_prompts(
            ids, groups, leaders, starts, prompt_ends, position[prompt], sequence[prompt]
        )
        scored = response & (place >= 1)
        asked = prompt & (place >= prefix_length) & (leaders[sequence] == sequence)
        targets = ids[position[scored | asked]]
        return cls(
            token_shape=tuple(input_ids.shape),
            groups=groups,
            leaders=leaders,
            response_rows=position[scored] - 1,
            response_targets=ids[position[scored]],
            response_segments=sequence[scored],
            prompt_rows=position[asked] - 1,
            prompt_targets=ids[position[asked]],
            prompt_segments=sequence[asked],
            target_bounds=(int(targets.min()), int(targets.max())) if targets.numel() else (0, 0),
        )

    @property
    def num_sequences(self) -> int:
        """S."""
        return self.groups.numel()

    @cached_property
    def lengths(self) -> Tensor:
        """``[S]`` number of scored response tokens."""
        return segment_lengths(self.response_segments, self.num_sequences)

    @cached_property
    def logp_targets(self) -> Tensor:
        """Per position the token it predicts, where that is scored, else -100."""
        size = torch.Size(self.token_shape).numel()
        targets = self.response_targets.new_full((size,), IGNORE)
        targets[self.prompt_rows] = self.prompt_targets
        targets[self.response_rows] = self.response_targets
        return targets.view(self.token_shape)

    @cached_property
    def logp_grad_mask(self) -> Tensor:
        """Per position whether it predicts a response token: those carry gradient."""
        size = torch.Size(self.token_shape).numel()
        mask = torch.zeros(size, dtype=torch.bool, device=self.groups.device)
        return mask.index_fill(0, self.response_rows, True).view(self.token_shape)

    def loss_inputs(self, token_logps: Tensor, **inputs: Tensor | None) -> LossInputs:
        """Inputs of a loss from log-probs given per position.

        Args:
            token_logps: shaped like `input_ids`; entry i is the log-prob of what position i
                predicts (`logp_targets`). Entries without a target are not read.
            inputs: other fields of `LossInputs`. Those with an entry per token
                (`ref_token_logps`) are shaped like `input_ids` too.
        """
        self._check_positions("token_logps", token_logps)
        flat = token_logps.reshape(-1)
        return self.row_loss_inputs(flat[self.response_rows], flat[self.prompt_rows], **inputs)

    def row_loss_inputs(
        self, response_logps: Tensor, prompt_logps: Tensor | None, **inputs: Tensor | None
    ) -> LossInputs:
        """As `loss_inputs`, from log-probs ``[R]`` and ``[Q]``; None: prompts were not scored."""
        for name in inputs:
            if name not in FIELD_SHAPES or name in _OWN_FIELDS:
                known = ", ".join(n for n in FIELD_SHAPES if n not in _OWN_FIELDS)
                raise InputError(name, f"one of the inputs of a loss ({known})", "another")
        return LossInputs(
            token_logps=response_logps,
            segments=self.response_segments,
            num_sequences=self.num_sequences,
            prompt_logps=None if prompt_logps is None else self.prompt_sums(prompt_logps),
            groups=self.groups,
            **{name: self._select(name, value) for name, value in inputs.items()},
        )

    def prompt_sums(self, prompt_logps: Tensor) -> Tensor:
        """``[S]`` fp64 sums of ``[Q]`` prompt log-probs, repeated for all sequences of a group."""
        return segment_sum(prompt_logps, self.prompt_segments, self.num_sequences)[self.leaders]

    def _select(self, name: str, value: Tensor | None) -> Tensor | None:
        """Response rows of an input that has an entry per token."""
        shapes = FIELD_SHAPES[name]
        if value is None or "N" not in shapes:
            return value
        if "S" in shapes and tuple(value.shape) == (self.num_sequences,):
            return value
        self._check_positions(name, value)
        return value.reshape(-1)[self.response_rows]

    def _check_positions(self, name: str, value: Tensor) -> None:
        if tuple(value.shape) != self.token_shape:
            raise InputError(
                name, f"shape {list(self.token_shape)}, like `input_ids`", list(value.shape)
            )


def _check_ids(name: str, value: Tensor, shape: str, dims: int) -> None:
    if value.dim() != dims:
        raise InputError(name, f"shape {shape}", list(value.shape))
    if value.dtype not in (torch.int64, torch.int32):
        raise InputError(name, "int64", value.dtype)


def _as_mask(name: str, mask: Tensor, input_ids: Tensor) -> Tensor:
    """`mask` as bool, checked against `input_ids`."""
    if mask.shape != input_ids.shape:
        raise InputError(name, f"shape {list(input_ids.shape)}, like `input_ids`", list(mask.shape))
    if mask.device != input_ids.device:
        raise InputError(name, f"device {input_ids.device}, like `input_ids`", mask.device)
    marked: Tensor = mask.bool()
    if bool((marked.to(mask.dtype) != mask).any()):
        raise InputError(name, "zeros and ones", "other values")
    return marked


def _check_groups(groups: Tensor | None, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Groups and, for each sequence, the first one of its group."""
    sequences = torch.arange(starts.numel(), device=starts.device)
    if groups is None:
        return sequences, sequences
    _check_ids("groups", groups, "[S]", 1)
    if groups.numel() != starts.numel():
        raise InputError("groups", f"one number per sequence, S = {starts.numel()}", groups.numel())
    groups = groups.to(device=starts.device, dtype=torch.int64)
    present = torch.unique(groups)
    if not torch.equal(present, sequences[: present.numel()]):
        raise InputError("groups", "numbers dense from 0", present.tolist())
    first = torch.full_like(present, starts.numel()).scatter_reduce(0, groups, sequences, "amin")
    return groups, first[groups]


def _check_prompts(
    ids: Tensor,
    groups: Tensor,
    leaders: Tensor,
    starts: Tensor,
    prompt_ends: Tensor,
    position: Tensor,
    sequence: Tensor,
) -> None:
    """Raise unless each prompt equals its group's first; `position` and `sequence`: its tokens."""
    sizes = prompt_ends - starts
    unequal = sizes != sizes[leaders]
    # Where sizes differ the counterpart may lie outside; its value does not matter then.
    counterpart = position - starts[sequence] + starts[leaders[sequence]]
    differs = ids[position] != ids[counterpart.clamp(max=max(ids.numel() - 1, 0))]
    unequal[sequence[differs]] = True
    if bool(unequal.any()):
        bad = _first(unequal)
        raise InputError(
            "groups",
            "the same prompt in all sequences of a group",
            f"other tokens in sequence {bad} than in sequence {int(leaders[bad])} "
            f"of group {int(groups[bad])}",
        )


def _first(mask: Tensor) -> int:
    return int(mask.to(torch.int8).argmax())
