"""Token log-probs from a causal language model's own forward, without its logits.

`attach_fused_head` changes the class of the head to `FusedHead`, which runs the op inside the
head's own forward: there its weight is gathered and its hooks have run. The model's forward,
patched on the instance, runs trunk and head. Wrappers of the model (DDP, FSDP2, autocast, adapters)
see an ordinary forward.

Legend: B sequences, T tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ..errors import InputError
from ..types import EngineOptions
from .head import FusedHead, current_head, head_error, head_linears
from .parity import find_difference
from .transforms import HeadTransform, head_transform
from .unwrap import causal_lm
from .value_head import values_of

Model = TypeVar("Model", bound=nn.Module)

# What `logp_stats` may name: statistics of the head, and outputs of the value head.
STATS = ("entropy", "is_top1", "log_sum_sq_probs")
VALUES = "token_values"


@dataclass
class FusedLMOutput(ModelOutput):
    """Output of an attached model that is called with `logp_targets`.

    token_logps: ``[B, T]`` float32 (float64 for a float64 model), nats, 0.0 where the target is
    -100. entropy: ``[B, T]``, nats, or None if not requested. is_top1: ``[B, T]`` bool, or None if
    not requested. log_sum_sq_probs: ``[B, T]``, ``log(sum_v p_v^2)`` without gradient, or None if
    not requested. token_values: ``[B, T]`` float32 outputs of the value head (`attach_value_head`),
    or None if not requested. aux_loss: load-balancing loss of a mixture of experts, without its
    coefficient, or None if the model does not compute router logits.
    """

    token_logps: Tensor
    entropy: Tensor | None = None
    is_top1: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    token_values: Tensor | None = None
    aux_loss: Tensor | None = None


@dataclass(frozen=True)
class _Request:
    """Arguments of one call for the head. targets, grad_mask: ``[B, T]``."""

    targets: Tensor
    grad_mask: Tensor | None
    stats: tuple[str, ...]
    temperature: float
    options: EngineOptions

    @property
    def head_stats(self) -> tuple[str, ...]:
        return tuple(name for name in self.stats if name != VALUES)


@dataclass(frozen=True)
class _Plan:
    """The class and config of a model, as its patched forward needs them; shared by its copies."""

    transform: HeadTransform
    parameters: tuple[str, ...]
    balance_loss: Callable[..., Tensor] | None


def attach_fused_head(
    model: Model, *, check_parity: Literal["raise", "warn", "off"] = "raise"
) -> Model:
    """Make a causal language model return token log-probs without building logits.

    ``model(input_ids=, attention_mask=, logp_targets=[B, T])`` then returns a `FusedLMOutput`.
    ``logp_targets[b, i]`` is the token that position i predicts (already shifted), -100 where none
    is wanted. Further arguments of that call:

    * ``logp_grad_mask``: ``[B, T]`` bool; False gives the value without gradient.
    * ``logp_stats``: names among ``("entropy", "is_top1", "log_sum_sq_probs", "token_values")``;
      the last are outputs of `attach_value_head`.
    * ``logp_temperature``: divides the logits, above 0; that at which responses were sampled.
    * ``engine_options``: options of the op, see `EngineOptions`.

    Hidden states that are NaN or inf at a scored position raise `InputError`, also under fp16's
    loss scaler: it handles gradients that overflow, not hidden states that do.

    A call without `logp_targets` behaves as before. Attach before the model is wrapped
    (DistributedDataParallel, FSDP2, torch.compile), before or after `get_peft_model`, and again
    after its embeddings were resized; on an attached model the call does nothing. Save it with
    `save_pretrained` or its state_dict; pickling it whole, as ``torch.save(model)`` does, raises.

    Args:
        model: a `PreTrainedModel`, or a `PeftModel` around one; changed in place.
        check_parity: action if log-probs of 16 tokens differ from those of the model's own logits.
            "raise": raise and leave the model unchanged; "warn": attach anyway and warn; "off":
            skip the check.

    Returns:
        The same model.

    Raises:
        InputError: the op cannot stand in for the head of this model, or the check failed.

    Example:
        >>> model = attach_fused_head(AutoModelForCausalLM.from_pretrained(name))
        >>> targets = input_ids.roll(-1, dims=1)  # position i predicts token i + 1
        >>> targets[:, -1] = -100
        >>> model(input_ids=input_ids, logp_targets=targets).token_logps  # [B, T]
    """
    if check_parity not in ("raise", "warn", "off"):
        raise InputError("check_parity", "'raise', 'warn' or 'off'", repr(check_parity))
    lm = causal_lm(model)
    linears = head_linears(lm)
    _check_forward(lm)
    patched = _is_patched(lm)
    if patched and all(isinstance(linear, FusedHead) for linear in linears):
        return model
    plan = _plan(lm)
    for linear in linears:
        if type(linear) is nn.Linear:
            linear.__class__ = FusedHead
    if not patched:
        lm.forward = types.MethodType(_patched_forward(type(lm), plan), lm)
    if check_parity != "off":
        _check_parity(lm, linears, plan.transform, check_parity)
    return model


def detach_fused_head(model: Model) -> Model:
    """Undo `attach_fused_head`, in place; a model that is not attached stays as it is.

    Args:
        model: the model that was attached, or its `PeftModel`.

    Returns:
        The same model.

    Raises:
        InputError: another library has wrapped the model's forward since.
    """
    lm = causal_lm(model)
    if _is_patched(lm):
        forward = _instance_forward(lm)
        if forward is None or forward is not inspect.unwrap(forward):
            raise InputError(
                "model",
                "its forward as attach_fused_head left it",
                "one that was wrapped since",
                "Undo the wrapper first, for example with accelerator.unwrap_model.",
            )
        del lm.forward
    for module in lm.modules():
        if type(module) is FusedHead:
            module.__class__ = nn.Linear  # type: ignore[assignment]
    return model


def _patched_forward(cls: type[PreTrainedModel], plan: _Plan) -> Callable[..., Any]:
    """Return the forward of an attached instance of `cls`.

    It refers to no instance, so that copies of the model do not call the original.
    """

    def forward(
        self: PreTrainedModel,
        *args: Any,
        logp_targets: Tensor | None = None,
        logp_grad_mask: Tensor | None = None,
        logp_stats: tuple[str, ...] = (),
        logp_temperature: float = 1.0,
        engine_options: EngineOptions | None = None,
        **kwargs: Any,
    ) -> Any:
        if logp_targets is None:
            if logp_grad_mask is not None:
                raise InputError("logp_targets", "the targets that logp_grad_mask masks", None)
            return type(self).forward(self, *args, **kwargs)
        request = _Request(
            logp_targets, logp_grad_mask, tuple(logp_stats), logp_temperature, engine_options or {}
        )
        return _fused_forward(self, plan, _trunk_inputs(plan, args, kwargs), request)

    functools.update_wrapper(forward, cls.forward)
    # Keep the signature but not the link to the wrapped function: accelerate's unwrap follows
    # such links to their end and would leave the model unpatched.
    del forward.__wrapped__  # type: ignore[attr-defined]
    forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
    forward.is_fused_head_forward = True  # type: ignore[attr-defined]
    return forward


def _fused_forward(
    model: PreTrainedModel, plan: _Plan, inputs: dict[str, Any], request: _Request
) -> FusedLMOutput:
    head = current_head(model)
    if _wants_router_logits(model, inputs):
        inputs["output_router_logits"] = True
    outputs = model.base_model(**inputs)
    hidden = outputs[0]
    _check_request(request, hidden)
    values = values_of(model, hidden, inputs) if VALUES in request.stats else None
    scores = head(
        hidden,
        request.targets,
        grad_mask=request.grad_mask,
        stats=request.head_stats,
        transform=plan.transform.at(request.temperature),
        options=request.options,
    )
    if not isinstance(scores, tuple):
        raise head_error(head)
    aux_loss = None
    if inputs.get("output_router_logits"):
        aux_loss = _aux_loss(model, plan, outputs, inputs.get("attention_mask"))
    stats = dict(zip(request.head_stats, scores[1:], strict=True))
    return FusedLMOutput(token_logps=scores[0], token_values=values, aux_loss=aux_loss, **stats)


def _trunk_inputs(plan: _Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the trunk's arguments by name: those given, without those that only concern logits."""
    named = dict(zip(plan.parameters, args, strict=False))
    if repeated := named.keys() & kwargs.keys():
        raise TypeError(f"forward() got multiple values for {sorted(repeated)}")
    inputs = {name: value for name, value in (named | kwargs).items() if value is not None}
    if "labels" in inputs:
        raise InputError("labels", "None together with logp_targets", "labels")
    keep = inputs.pop("logits_to_keep", 0)
    if isinstance(keep, Tensor) or keep != 0:
        raise InputError(
            "logits_to_keep", "0 together with logp_targets", keep, "Set other targets to -100."
        )
    return {"use_cache": False, **inputs, "return_dict": True}


def _check_request(request: _Request, hidden: Tensor) -> None:
    shape = hidden.shape[:-1]
    targets, mask = request.targets, request.grad_mask
    if targets.shape != shape:
        expected = f"shape {list(shape)}, one target for each position of the input"
        raise InputError("logp_targets", expected, f"shape {list(targets.shape)}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != shape):
        expected = f"a bool tensor of shape {list(shape)}"
        raise InputError("logp_grad_mask", expected, f"{mask.dtype} of shape {list(mask.shape)}")
    if unknown := [name for name in request.head_stats if name not in STATS]:
        raise InputError("logp_stats", f"names among {(*STATS, VALUES)}", unknown)
    if not 0 < request.temperature < math.inf:
        raise InputError("logp_temperature", "a finite number above 0", request.temperature)


def _wants_router_logits(model: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    default = getattr(model.config.get_text_config(), "output_router_logits", False)
    return bool(inputs.get("output_router_logits", default))


def _aux_loss(
    model: PreTrainedModel, plan: _Plan, outputs: ModelOutput, attention_mask: Tensor | None
) -> Tensor | None:
    """Return the load-balancing loss of the router logits, as the model's own forward does."""
    router_logits = getattr(outputs, "router_logits", None)
    if router_logits is None or plan.balance_loss is None:
        return None
    source = model if hasattr(model, "num_experts") else model.config.get_text_config()
    return plan.balance_loss(
        router_logits, source.num_experts, source.num_experts_per_tok, attention_mask
    )


def _plan(model: PreTrainedModel) -> _Plan:
    cls = type(model)
    return _Plan(
        transform=head_transform(model.config),
        parameters=tuple(inspect.signature(cls.forward).parameters)[1:],
        balance_loss=getattr(sys.modules[cls.__module__], "load_balancing_loss_func", None),
    )


def _check_parity(
    model: PreTrainedModel,
    linears: list[nn.Linear],
    transform: HeadTransform,
    action: Literal["raise", "warn"],
) -> None:
    try:
        if linears[0].weight.is_meta:
            raise InputError(
                "model",
                "weights to run the parity check with",
                "weights on the meta device",
                "Attach after loading, or pass check_parity='off'.",
            )
        difference = find_difference(model, linears, transform)
        if difference is None:
            return
        if action == "raise":
            raise InputError(
                "model",
                f"a model whose logits are its head's output under {transform}, read from its "
                f"{type(model.config).__name__}",
                difference,
                "Train on its logits instead.",
            )
    except BaseException:
        detach_fused_head(model)
        raise
    warnings.warn(f"fused log-probs of {type(model).__name__}: {difference}", stacklevel=3)


def _instance_forward(model: PreTrainedModel) -> Callable[..., Any] | None:
    forward = vars(model).get("forward")
    return getattr(forward, "__func__", forward)


def _is_patched(model: PreTrainedModel) -> bool:
    """True if the instance has attach's forward, also under wrappers that were added since."""
    forward = _instance_forward(model)
    return forward is not None and hasattr(inspect.unwrap(forward), "is_fused_head_forward")


def _check_forward(model: PreTrainedModel) -> None:
    # Unpickling can put the class's own forward on the instance; that counts as none.
    own = _instance_forward(model) in (None, type(model).forward)
    if not own and not _is_patched(model):
        raise InputError(
            "model",
            "the forward of its class",
            "one that another library put on the instance",
            "Call attach_fused_head before it; device_map over several devices is unsupported.",
        )
