"""`LossInputs`, the tensors that a loss may read.

Legend: N response tokens, S sequences, M reward models, K reference samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..segments import segment_lengths, segment_sum


def _optional(*shapes: str) -> Any:
    """Declare an optional tensor field and the shapes it may have, one letter per dimension."""
    return field(default=None, metadata={"shapes": shapes})


@dataclass(frozen=True, eq=False)
class LossInputs:
    """Log-probabilities and constants a loss is a function of; fields it does not read are ignored.

    Sums over tokens are taken in fp64. Values are checked on the CPU only: reading them from
    another device would synchronise.

    Attributes:
        token_logps: ``[N]`` log-probabilities of the response tokens under the policy, in nats.
        segments: ``[N]`` int, index of each token's sequence, ascending from 0.
        num_sequences: S; a sequence without a token has log-probability 0.
        ref_token_logps, ref_logps: log-probabilities under the reference, ``[N]`` per token or
            ``[S]`` summed. Given per token, log-ratios are sums of per-token differences: far more
            exact.
        old_token_logps: ``[N]`` log-probabilities under the policy that sampled the responses.
        prompt_logps, ref_prompt_logps: ``[S]`` sums over the prompt after its shared prefix.
        rewards: ``[S]`` explicit rewards. advantages: ``[S]`` or ``[N]``, used instead of rewards.
        groups: ``[S]`` int, index of the prompt that a sequence answers, dense from 0; None: each
            its own.
        preferred: ``[S]`` bool, the chosen one of a pair, or a desirable response. gold: ``[S]``
            bool, the gold answer.
        values: ``[S]`` or ``[N]`` outputs of a value model. returns: ``[N]`` their targets.
            old_values: ``[N]`` outputs when the responses were sampled. Where S = N, `ppo` takes
            advantages and values beside returns as per token.
        kl_logps, ref_kl_logps: ``[S]`` of mismatched prompts and responses (KTO).
        reward_ensemble: ``[M, S]`` rewards of several models.
        ref_rewards, ref_reward_groups: ``[K]`` rewards of reference samples and their prompts.
        token_entropy, token_log_sum_sq: ``[N]`` entropy in nats, and ``log sum_v p_v^2``.
    """

    token_logps: Tensor = field(metadata={"shapes": ("N",)})
    segments: Tensor = field(metadata={"shapes": ("N",)})
    num_sequences: int
    ref_token_logps: Tensor | None = _optional("N")
    ref_logps: Tensor | None = _optional("S")
    old_token_logps: Tensor | None = _optional("N")
    prompt_logps: Tensor | None = _optional("S")
    ref_prompt_logps: Tensor | None = _optional("S")
    rewards: Tensor | None = _optional("S")
    groups: Tensor | None = _optional("S")
    preferred: Tensor | None = _optional("S")
    advantages: Tensor | None = _optional("S", "N")
    values: Tensor | None = _optional("S", "N")
    returns: Tensor | None = _optional("N")
    old_values: Tensor | None = _optional("N")
    gold: Tensor | None = _optional("S")
    kl_logps: Tensor | None = _optional("S")
    ref_kl_logps: Tensor | None = _optional("S")
    reward_ensemble: Tensor | None = _optional("MS")
    ref_rewards: Tensor | None = _optional("K")
    ref_reward_groups: Tensor | None = _optional("K")
    token_entropy: Tensor | None = _optional("N")
    token_log_sum_sq: Tensor | None = _optional("N")

    def __post_init__(self) -> None:
        if self.num_sequences < 1:
            raise InputError("num_sequences", "at least one sequence", self.num_sequences)
        if self.token_logps.dim() != 1:
            raise InputError(
                "token_logps", "shape [N], response tokens only", list(self.token_logps.shape)
            )
        for name, shapes in FIELD_SHAPES.items():
            value = getattr(self, name)
            if value is not None:
                self._check_tensor(name, value, shapes)
        self._check_segments()
        self._check_groups()

    def _check_tensor(self, name: str, value: object, shapes: tuple[str, ...]) -> None:
        expected = " or ".join(f"[{', '.join(shape)}]" for shape in shapes)
        samples = self.ref_rewards
        sizes = {"N": self.token_logps.numel(), "S": self.num_sequences}
        sizes |= {} if samples is None else {"K": samples.numel()}
        if not isinstance(value, Tensor):
            raise InputError(name, f"a tensor {expected}", type(value).__name__)
        if value.device != self.token_logps.device:
            raise InputError(name, f"device {self.token_logps.device}", value.device)
        if not any(_fits(value, shape, sizes) for shape in shapes):
            legend = f"N = {sizes['N']} response tokens, S = {sizes['S']} sequences"
            legend += f", K = {sizes['K']} reference samples" if "K" in sizes else ""
            raise InputError(name, f"shape {expected} with {legend}", list(value.shape))

    def _check_segments(self) -> None:
        segments = self.segments
        if segments.dtype not in (torch.int64, torch.int32):
            raise InputError("segments", "int64 or int32", segments.dtype)
        if segments.device.type != "cpu" or segments.numel() == 0:
            return
        if bool((segments.diff() < 0).any()):
            raise InputError("segments", "ascending sequence numbers", "a descending step")
        if int(segments[0]) < 0 or int(segments[-1]) >= self.num_sequences:
            raise InputError(
                "segments",
                f"sequence numbers from 0 to {self.num_sequences - 1}",
                f"{int(segments[0])} to {int(segments[-1])}",
            )

    def _check_groups(self) -> None:
        """Require dense ids: others would index out of bounds, or another group."""
        groups = self.groups
        if groups is None:
            return
        if groups.dtype not in (torch.int64, torch.int32):
            raise InputError("groups", "int64 or int32", groups.dtype)
        if groups.device.type != "cpu":
            return
        present = torch.unique(groups)
        if not torch.equal(present, torch.arange(len(present), dtype=present.dtype)):
            fix = "`torch.unique(groups, return_inverse=True)[1]` gives such ids."
            raise InputError("groups", "ids dense from 0", present.tolist(), fix)

    @property
    def logps(self) -> Tensor:
        """``[S]`` fp64 log-probability of each response; 0 where it is empty."""
        return segment_sum(self.token_logps, self.segments, self.num_sequences)

    @cached_property
    def lengths(self) -> Tensor:
        """``[S]`` int64 number of response tokens."""
        return segment_lengths(self.segments, self.num_sequences)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of results: fp64 for fp64 log-probs, else fp32."""
        return torch.promote_types(self.token_logps.dtype, torch.float32)

    def require(self, name: str) -> Tensor:
        """Return the field `name`; raise `InputError` if it is None."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise InputError(name, "a tensor", None, "The loss needs it.")
        return value


FIELD_SHAPES: dict[str, tuple[str, ...]] = {
    f.name: f.metadata["shapes"] for f in fields(LossInputs) if "shapes" in f.metadata
}


def _fits(value: Tensor, shape: str, sizes: dict[str, int]) -> bool:
    return value.dim() == len(shape) and all(
        sizes.get(letter, size) == size for letter, size in zip(shape, value.shape, strict=True)
    )
