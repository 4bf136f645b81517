"""Where the sequences of a micro-batch stand: padded to one length, or one after another.

Legend: S sequences, T tokens of the longest one, N tokens of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..sequence import SequenceBatch

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Layout:
    """Positions of sequences, each a prompt and its response, in tensors of one shape.

    pairs: ids of prompt and response. shape: ``(S, T)`` padded, or ``(1, N)`` packed.
    starts: flat position of each sequence's first token.
    """

    pairs: list[Pair]
    shape: tuple[int, int]
    starts: list[int]

    @classmethod
    def of(cls, pairs: list[Pair], *, packing: bool) -> Layout:
        lengths = [len(prompt) + len(response) for prompt, response in pairs]
        if packing:
            return cls(pairs, (1, sum(lengths)), [0, *accumulate(lengths[:-1])])
        width = max(lengths)
        return cls(pairs, (len(pairs), width), [s * width for s in range(len(pairs))])

    @property
    def packed(self) -> bool:
        return self.shape[0] != len(self.pairs)

    def place(
        self, values: Sequence[Tensor], offsets: Sequence[int], fill: float, dtype: torch.dtype
    ) -> Tensor:
        """Return a tensor of `shape` that holds ``values[s]`` from offset s of sequence s on.

        offsets: at least -1; what would stand before a sequence is left out.
        """
        placed = torch.full((self.shape[0] * self.shape[1],), fill, dtype=dtype)
        for start, own, offset in zip(self.starts, values, offsets, strict=True):
            own = own[max(-offset, 0) :]
            first = start + max(offset, 0)
            placed[first : first + len(own)] = own.to(dtype)
        return placed.view(self.shape)

    def at_responses(self, values: Sequence[Tensor], fill: float, dtype: torch.dtype) -> Tensor:
        """Place one value per response token at the token itself."""
        return self.place(values, [len(prompt) for prompt, _ in self.pairs], fill, dtype)

    def at_predictions(self, values: Sequence[Tensor]) -> Tensor:
        """Place one value per response token, fp32, at the position that predicts the token."""
        offsets = [len(prompt) - 1 for prompt, _ in self.pairs]
        return self.place(values, offsets, 0.0, torch.float32)

    def model_inputs(self, pad_token_id: int) -> dict[str, Tensor]:
        """Return `input_ids`, then `attention_mask` of padded, or `position_ids` of packed ids.

        Of packed ids the positions restart with each sequence, by which the model tells them apart.
        """
        ids = [torch.cat(pair) for pair in self.pairs]
        zeros = [0] * len(ids)
        # The ids come first: transformers takes a batch's size from its first tensor.
        inputs = {"input_ids": self.place(ids, zeros, pad_token_id, torch.int64)}
        if self.packed:
            own = [torch.arange(len(one)) for one in ids]
            return inputs | {"position_ids": self.place(own, zeros, 0, torch.int64)}
        present = [torch.ones(len(one)) for one in ids]
        return inputs | {"attention_mask": self.place(present, zeros, 0, torch.int64)}

    def sequences(
        self,
        input_ids: Tensor,
        groups: Tensor,
        prefix_length: int,
        masks: Sequence[Tensor | None],
    ) -> SequenceBatch:
        """Return the index tensors; masks: per response a bool per token, None: all are scored."""
        mask = None
        if any(one is not None for one in masks):
            responses = [response for _, response in self.pairs]
            given = [
                torch.ones(len(ids), dtype=torch.bool) if one is None else one
                for ids, one in zip(responses, masks, strict=True)
            ]
            mask = self.at_responses(given, 0, torch.bool)
        return SequenceBatch.from_lengths(
            input_ids,
            prompt_lengths=torch.tensor([len(prompt) for prompt, _ in self.pairs]),
            lengths=torch.tensor([len(prompt) + len(response) for prompt, response in self.pairs]),
            groups=groups,
            prefix_length=prefix_length,
            response_mask=mask,
        )
