"""`SequenceBatch`: positions to score, and the sequence that each of them belongs to.

Legend: B x T padded, or N packed, token positions; S sequences; R response tokens; Q prompt
tokens. Position i predicts the token at i + 1 of the same sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..losses import LossInputs
from ..losses._inputs import FIELD_SHAPES
from ..segments import segment_lengths, segment_sum
from .tokens import (
    Tokens,
    as_mask,
    check_groups,
    check_ids,
    check_prompts,
    find_tokens,
    first_true,
    leaders_of,
)

IGNORE = -100
_OWN_FIELDS = ("token_logps", "segments", "num_sequences", "prompt_logps", "groups")


@dataclass(frozen=True, eq=False)
class SequenceBatch:
    """Token sequences, each a prompt and a response to it, ready to be scored.

    `completion_mask` marks the response; the prompt is what stands before its first token. Other
    tokens (a tool's output) belong to neither. The first token of a sequence is never scored: no
    position predicts it. The prompt is scored from its token `prefix_length` on, and once per
    group, on the group's first sequence.

    Build it with `from_padded` or `from_packed`. They check their arguments, which reads tensors
    on the host; on a GPU each read waits for the device, so build on the CPU and move the batch
    with `to`. Of the other methods only `first` reads a tensor on the host.

    Attributes:
        token_shape: ``(B, T)`` or ``(N,)``: shape of tensors with one value per position.
        groups: ``[S]`` int64, the prompt each sequence answers, dense from 0.
        leaders: ``[S]`` int64, the first sequence of each one's group.
        response_rows, prompt_rows: ``[R]`` or ``[Q]`` int64 flat positions that predict the tokens.
        response_targets, prompt_targets: ``[R]`` or ``[Q]`` int64 ids of the tokens.
        response_segments, prompt_segments: ``[R]`` or ``[Q]`` int64 their sequences, ascending.
        prompt_end_rows: ``[S]`` int64 flat position of each prompt's last token; of the sequence's
            first token where it has no prompt.
        target_bounds: the smallest and the largest of these ids; (0, 0) without any.
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
    prompt_end_rows: Tensor
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
        """Build a batch from padded ids, B = S sequences.

        Args:
            input_ids: ``[B, T]`` int64 or int32, unshifted, as a Hugging Face model takes them.
            completion_mask: ``[B, T]`` of zeros and ones, any dtype; 1 at response tokens.
            attention_mask: ``[B, T]`` of zeros and ones, any dtype; 0 at padding, on either side
                or both. None: no padding.
            prefix_length: tokens at the beginning of each prompt that are not scored, at least 1.
            groups: ``[S]`` integers dense from 0, equal where sequences answer the same prompt;
                None: each sequence has a prompt of its own.

        Returns:
            The batch, on the device of `input_ids`.

        Raises:
            InputError: an argument has another shape, dtype, device or value than stated, an
                attention mask has a gap, or prompts of one group differ.

        Example:
            >>> ids = torch.tensor([[1, 5, 6, 7], [1, 5, 8, 0]])
            >>> answers = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0]])
            >>> prompts = torch.tensor([0, 0])
            >>> batch = SequenceBatch.from_padded(ids, answers, ids != 0, groups=prompts)
            >>> batch.response_targets.tolist(), batch.response_segments.tolist()
            ([6, 7, 8], [0, 0, 1])
        """
        check_ids("input_ids", input_ids, "[B, T]", 2)
        rows, width = input_ids.shape
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        present = as_mask("attention_mask", attention_mask, input_ids)
        lengths = present.sum(1)
        starts = present.to(torch.int8).argmax(1) if width else lengths
        columns = torch.arange(width, device=input_ids.device)
        run = (columns >= starts[:, None]) & (columns < (starts + lengths)[:, None])
        broken = (run != present).any(1)
        if bool(broken.any()):
            raise InputError(
                "attention_mask",
                "one run of ones in each sequence",
                f"a gap in sequence {first_true(broken)}",
            )
        starts = starts + torch.arange(rows, device=input_ids.device) * width
        mask = as_mask("completion_mask", completion_mask, input_ids)
        return cls._checked(input_ids, mask, starts, starts + lengths, prefix_length, groups)

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
        """Build a batch from sequences that stand one after another, without padding.

        Args:
            input_ids: ``[N]`` int64 or int32, unshifted.
            completion_mask: ``[N]`` of zeros and ones, any dtype; 1 at response tokens.
            cu_seqlens: ``[S + 1]`` ascending offsets from 0 to N; sequence s is
                ``input_ids[cu_seqlens[s]:cu_seqlens[s + 1]]``.
            prefix_length, groups: as in `from_padded`.

        Returns:
            The batch, on the device of `input_ids`.

        Raises:
            InputError: an argument has another shape, dtype, device or value than stated, or
                prompts of one group differ.
        """
        check_ids("input_ids", input_ids, "[N]", 1)
        check_ids("cu_seqlens", cu_seqlens, "[S + 1]", 1)
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
        mask = as_mask("completion_mask", completion_mask, input_ids)
        return cls._checked(input_ids, mask, edges[:-1], edges[1:], prefix_length, groups)

    @classmethod
    def from_lengths(
        cls,
        input_ids: Tensor,
        prompt_lengths: Tensor,
        lengths: Tensor,
        groups: Tensor,
        *,
        prefix_length: int = 1,
        response_mask: Tensor | None = None,
    ) -> SequenceBatch:
        """Build a batch from ids of known lengths, which are trusted.

        For a collator, which has made the tensors itself: nothing is checked.

        Args:
            input_ids: ``[S, T]`` int64, padded on the right, or ``[1, N]``, all sequences one after
                another.
            prompt_lengths: ``[S]`` int64 tokens of each prompt.
            lengths: ``[S]`` int64 tokens of each prompt and its response together.
            groups: ``[S]`` int64 dense from 0; prompts of one group are equal.
            prefix_length: as in `from_padded`.
            response_mask: bool, shaped like `input_ids`; False at tokens of a response that are not
                scored. None: all are.
        """
        size, width = lengths.numel(), input_ids.shape[1]
        starts = torch.arange(size, device=input_ids.device) * width
        if len(input_ids) != size:
            starts = lengths.cumsum(0) - lengths
        if response_mask is None:
            response_mask = torch.ones_like(input_ids, dtype=torch.bool)
        tokens = find_tokens(response_mask, starts, starts + lengths, starts + prompt_lengths)
        return cls._index(input_ids, tokens, starts, groups, leaders_of(groups), prefix_length)

    @classmethod
    def _checked(
        cls,
        input_ids: Tensor,
        completion_mask: Tensor,
        starts: Tensor,
        ends: Tensor,
        prefix_length: int,
        groups: Tensor | None,
    ) -> SequenceBatch:
        """Check prompts and groups of flat sequences ``starts[s] <= position < ends[s]``."""
        if prefix_length < 1:
            raise InputError("prefix_length", "at least 1 (the first token)", prefix_length)
        if starts.numel() == 0:
            raise InputError("input_ids", "at least one sequence", list(input_ids.shape))
        groups = check_groups(groups, starts)
        leaders = leaders_of(groups)
        tokens = find_tokens(completion_mask, starts, ends)
        check_prompts(input_ids.reshape(-1), tokens, starts, groups, leaders)
        return cls._index(input_ids, tokens, starts, groups, leaders, prefix_length)

    @classmethod
    def _index(
        cls,
        input_ids: Tensor,
        tokens: Tokens,
        starts: Tensor,
        groups: Tensor,
        leaders: Tensor,
        prefix_length: int,
    ) -> SequenceBatch:
        """Select the tokens that are scored."""
        ids = input_ids.reshape(-1).to(torch.int64)
        position, sequence, offset = tokens.position, tokens.sequence, tokens.offset
        scored = tokens.response & (offset >= 1)
        asked = tokens.prompt & (offset >= prefix_length) & (leaders[sequence] == sequence)
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
            prompt_end_rows=torch.maximum(tokens.prompt_ends - 1, starts),
            target_bounds=(int(targets.min()), int(targets.max())) if targets.numel() else (0, 0),
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> SequenceBatch:
        """Return the batch with its tensors on `device`; arguments are those of `Tensor.to`."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def first(self, size: int) -> SequenceBatch:
        """Return the first `size` sequences of a batch of ids ``[S, T]`` or ``[1, N]``.

        The first sequence of each of their groups must be among them. Reads two numbers on the
        host.
        `target_bounds` stays: it still holds every target, but may be wider. So does the shape of
        ids that stand one after another, of which the last are then of no sequence.
        """
        assert len(self.token_shape) == 2 and 1 <= size <= self.num_sequences
        height, width = self.token_shape
        responses = int((self.response_segments < size).sum())
        prompts = int((self.prompt_segments < size).sum())
        return replace(
            self,
            token_shape=(min(size, height), width),
            groups=self.groups[:size],
            leaders=self.leaders[:size],
            response_rows=self.response_rows[:responses],
            response_targets=self.response_targets[:responses],
            response_segments=self.response_segments[:responses],
            prompt_rows=self.prompt_rows[:prompts],
            prompt_targets=self.prompt_targets[:prompts],
            prompt_segments=self.prompt_segments[:prompts],
            prompt_end_rows=self.prompt_end_rows[:size],
        )

    @property
    def num_sequences(self) -> int:
        """Number of sequences, S."""
        return self.groups.numel()

    @cached_property
    def lengths(self) -> Tensor:
        """``[S]`` int64 number of scored response tokens."""
        return segment_lengths(self.response_segments, self.num_sequences)

    @cached_property
    def logp_targets(self) -> Tensor:
        """int64, shaped `token_shape`: the token each position predicts, -100 if not scored."""
        size = torch.Size(self.token_shape).numel()
        targets = self.response_targets.new_full((size,), IGNORE)
        targets[self.prompt_rows] = self.prompt_targets
        targets[self.response_rows] = self.response_targets
        return targets.view(self.token_shape)

    @cached_property
    def logp_grad_mask(self) -> Tensor:
        """bool, shaped `token_shape`: True where a response token is predicted."""
        size = torch.Size(self.token_shape).numel()
        mask = torch.zeros(size, dtype=torch.bool, device=self.groups.device)
        return mask.index_fill(0, self.response_rows, True).view(self.token_shape)

    def loss_inputs(self, token_logps: Tensor, **inputs: Tensor | None) -> LossInputs:
        """Collect the inputs of a loss from log-probs given per position.

        Args:
            token_logps: shaped like `input_ids`; value i is the log-prob of the token that
                position i predicts (`logp_targets`), in nats. Values without a target are not
                read.
            inputs: other fields of `LossInputs`. Those with a value per token
                (`ref_token_logps`) are shaped like `input_ids` too.

        Returns:
            `LossInputs` with these, the segments and the groups of the batch.

        Raises:
            InputError: a name is not an input of a loss, or a tensor has another shape than stated.
        """
        self._check_positions("token_logps", token_logps)
        flat = token_logps.reshape(-1)
        return self.row_loss_inputs(flat[self.response_rows], flat[self.prompt_rows], **inputs)

    def row_loss_inputs(
        self, response_logps: Tensor, prompt_logps: Tensor | None, **inputs: Tensor | None
    ) -> LossInputs:
        """Collect the inputs of a loss from log-probs of the scored rows.

        Args:
            response_logps: ``[R]`` log-probs of the response tokens, in nats.
            prompt_logps: ``[Q]`` log-probs of the prompt tokens; None: not scored.
            inputs: other fields of `LossInputs`, as `loss_inputs` takes them.
        """
        for name in inputs:
            if name not in FIELD_SHAPES or name in _OWN_FIELDS:
                known = ", ".join(n for n in FIELD_SHAPES if n not in _OWN_FIELDS)
                raise InputError(name, f"one of the inputs of a loss ({known})", "an unknown name")
        return LossInputs(
            token_logps=response_logps,
            segments=self.response_segments,
            num_sequences=self.num_sequences,
            prompt_logps=None if prompt_logps is None else self.prompt_sums(prompt_logps),
            groups=self.groups,
            **{name: self._select(name, value) for name, value in inputs.items()},
        )

    def prompt_sums(self, prompt_logps: Tensor) -> Tensor:
        """Sum ``[Q]`` prompt log-probs to ``[S]`` fp64, one value for all sequences of a group."""
        return segment_sum(prompt_logps, self.prompt_segments, self.num_sequences)[self.leaders]

    def _select(self, name: str, value: Tensor | None) -> Tensor | None:
        """Cut an input with a value per token to the response rows; return others as they are."""
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
