"""`FusedHead`, the output head that runs the op, and checks of a model's head.

Legend: V vocabulary, D hidden size.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any, Never, Self

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..ops import linear_token_stats
from ..types import EngineOptions
from .transforms import HeadTransform

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FusedHead(nn.Linear):
    """A head ``[V, D]`` that returns logits, or for `targets` log-probs without building logits."""

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        targets: Tensor | None = None,
        *,
        grad_mask: Tensor | None = None,
        stats: tuple[str, ...] = (),
        transform: HeadTransform | None = None,
        options: EngineOptions | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Return logits ``[..., V]``, or log-probs and `stats` of `targets`.

        Args:
            input: hidden states ``[..., D]``.
            targets: ``[...]`` int64, -100 where none is wanted; None for logits.
            grad_mask: ``[...]`` bool; False gives the value without gradient.
            stats: names of statistics of `linear_token_stats`.
            transform: scale and softcap of the model's logits.
            options: options of the op.

        Returns:
            Logits, or a tuple of log-probs and `stats`, each shaped like `targets`. The tuple holds
            tensors only: the hooks of wrappers search it for tensors.
        """
        if targets is None:
            return super().forward(input)
        score = functools.partial(
            _token_stats,
            stats=stats,
            transform=transform or HeadTransform(),
            options=options or {},
        )
        if grad_mask is None or not torch.is_grad_enabled():
            return score(input, self.weight, self.bias, targets)
        learned = score(input, self.weight, self.bias, targets.masked_fill(~grad_mask, -100))
        with torch.no_grad():
            scored = score(input, self.weight, self.bias, targets.masked_fill(grad_mask, -100))
        pairs = zip(learned, scored, strict=True)
        return tuple(torch.where(grad_mask, *pair) for pair in pairs)

    def __reduce_ex__(self, protocol: object) -> Never:
        """Refuse to pickle: the pickle would lose the model's forward, a method of the instance."""
        raise InputError(
            "model",
            "a model without the fused head, to pickle it whole",
            "one with it attached",
            "Save with save_pretrained or its state_dict, or call detach_fused_head before and "
            "attach_fused_head after.",
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin


def head_linears(model: PreTrainedModel) -> list[nn.Linear]:
    """Return the modules that may act as the head: one, or original and copies under peft."""
    head = _output_head(model)
    if _is_peft_layer(head):
        raise head_error(head)
    copies = getattr(head, "modules_to_save", None)
    linears = (
        [head.original_module, *copies.values()] if isinstance(copies, nn.ModuleDict) else [head]
    )
    for linear in linears:
        plain = type(linear) in (nn.Linear, FusedHead) and type(linear.weight.data) is Tensor
        if not plain or not linear.weight.is_floating_point() or "forward" in vars(linear):
            raise head_error(linear)
    return linears


def current_head(model: PreTrainedModel) -> nn.Module:
    """Return the head of an attached model, under its adapter's wrapper if it has one; checked."""
    head: nn.Module = _output_head(model)
    if not isinstance(head, FusedHead):
        linears = head_linears(model)
        if not all(isinstance(linear, FusedHead) for linear in linears):
            raise InputError(
                "model",
                "the head that attach_fused_head saw",
                "a new one",
                "Resizing the embeddings builds one: call attach_fused_head again after it.",
            )
    return head


def _is_peft_layer(head: nn.Module | None) -> bool:
    return any(cls.__name__ == "BaseTunerLayer" for cls in type(head).__mro__)


def head_error(head: nn.Module | None) -> InputError:
    """Return an error that describes a head which the op cannot replace."""
    kind = f"{type(head).__module__}.{type(head).__name__}"
    if _is_peft_layer(head):
        fix = "Drop the head from target_modules, or train it whole with modules_to_save."
        return InputError("model", "a head without an adapter on it", kind, fix)
    if isinstance(head, nn.Linear) and type(head) in (nn.Linear, FusedHead):
        kind += f" with weight {type(head.weight.data).__name__} of {head.weight.dtype}"
        if "forward" in vars(head):
            kind += " and a forward put on the instance"
    fix = "Quantised, sharded and custom heads are not supported: keep the head out of them."
    return InputError("model", "an output head that is a plain torch.nn.Linear", kind, fix)


def _output_head(model: Any) -> Any:  # transformers gives this method no types
    return model.get_output_embeddings()


def _token_stats(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    stats: tuple[str, ...],
    transform: HeadTransform,
    options: EngineOptions,
) -> tuple[Tensor, ...]:
    result = linear_token_stats(
        hidden,
        weight,
        targets,
        bias=bias,
        logit_scale=transform.scale,
        logit_softcap=transform.softcap,
        stats=stats,
        **options,
    )
    return (result.logps, *(getattr(result, name) for name in stats))
