"""Find and check the tokens of a batch, from which `SequenceBatch` is built.

Legend: S sequences. Positions are flat, into ``[B * T]`` or ``[N]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


def check_ids(name: str, value: Tensor, shape: str, dims: int) -> None:
    if value.dim() != dims:
        raise InputError(name, f"shape {shape}", list(value.shape))
    if value.dtype not in (torch.int64, torch.int32):
        raise InputError(name, "int64 or int32", value.dtype)


def as_mask(name: str, mask: Tensor, input_ids: Tensor) -> Tensor:
    """Return `mask` as bool, checked against `input_ids`."""
    if mask.shape != input_ids.shape:
        raise InputError(name, f"shape {list(input_ids.shape)}, like `input_ids`", list(mask.shape))
    if mask.device != input_ids.device:
        raise InputError(name, f"device {input_ids.device}, like `input_ids`", mask.device)
    marked: Tensor = mask.bool()
    if bool((marked.to(mask.dtype) != mask).any()):
        raise InputError(name, "zeros and ones", "other values")
    return marked


def check_groups(groups: Tensor | None, starts: Tensor) -> Tensor:
    """Return `groups` as int64, or each sequence as its own group."""
    sequences = torch.arange(starts.numel(), device=starts.device)
    if groups is None:
        return sequences
    check_ids("groups", groups, "[S]", 1)
    if groups.numel() != starts.numel():
        raise InputError("groups", f"one number per sequence, S = {starts.numel()}", groups.numel())
    groups = groups.to(device=starts.device, dtype=torch.int64)
    present = torch.unique(groups)
    if not torch.equal(present, sequences[: present.numel()]):
        fix = "`torch.unique(groups, return_inverse=True)[1]` gives such ids."
        raise InputError("groups", "ids dense from 0", present.tolist(), fix)
    return groups


def leaders_of(groups: Tensor) -> Tensor:
    """Return ``[S]``, the first sequence of each one's group."""
    sequences = torch.arange(groups.numel(), device=groups.device)
    first = torch.full_like(groups, groups.numel()).scatter_reduce(0, groups, sequences, "amin")
    return first[groups]


@dataclass(frozen=True)
class Tokens:
    """The tokens that are not padding, sequence after sequence.

    position: flat. sequence: the one it belongs to. offset: its index within that, from 0.
    response, prompt: bool, True for tokens of the response, or of the prompt.
    prompt_ends: ``[S]`` flat position where each prompt ends.
    """

    position: Tensor
    sequence: Tensor
    offset: Tensor
    response: Tensor
    prompt: Tensor
    prompt_ends: Tensor


def find_tokens(
    completion_mask: Tensor, starts: Tensor, ends: Tensor, prompt_ends: Tensor | None = None
) -> Tokens:
    """List the tokens of flat sequences ``starts[s] <= position < ends[s]``.

    completion_mask: of flat positions; what it marks in a prompt is not read.
    prompt_ends: ``[S]`` where each prompt ends; None: at the first token of the mask.
    """
    lengths = ends - starts
    sequence = torch.repeat_interleave(lengths)
    skipped = starts - (lengths.cumsum(0) - lengths)
    position = torch.arange(sequence.numel(), device=starts.device) + skipped[sequence]
    response = completion_mask.reshape(-1)[position]
    if prompt_ends is None:
        prompt_ends = ends.scatter_reduce(0, sequence[response], position[response], "amin")
    else:
        response = response & (position >= prompt_ends[sequence])
    return Tokens(
        position=position,
        sequence=sequence,
        offset=position - starts[sequence],
        response=response,
        prompt=position < prompt_ends[sequence],
        prompt_ends=prompt_ends,
    )


def check_prompts(
    ids: Tensor, tokens: Tokens, starts: Tensor, groups: Tensor, leaders: Tensor
) -> None:
    """Raise unless each prompt equals that of its group's first sequence."""
    position, sequence = tokens.position[tokens.prompt], tokens.sequence[tokens.prompt]
    sizes = tokens.prompt_ends - starts
    unequal = sizes != sizes[leaders]
    # Where sizes differ the counterpart may lie outside; its value does not matter then.
    counterpart = position - starts[sequence] + starts[leaders[sequence]]
    differs = ids[position] != ids[counterpart.clamp(max=max(ids.numel() - 1, 0))]
    unequal[sequence[differs]] = True
    if bool(unequal.any()):
        bad = first_true(unequal)
        raise InputError(
            "groups",
            "the same prompt in all sequences of a group",
            f"different tokens in sequence {bad} than in sequence {int(leaders[bad])} "
            f"of group {int(groups[bad])}",
        )


def first_true(mask: Tensor) -> int:
    """Return the index of the first True."""
    return int(mask.to(torch.int8).argmax())
