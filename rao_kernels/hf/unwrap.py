"""Find the causal language model in what a user gives: a model, or an adapter around one."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import InputError


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the model that has trunk and head, without an adapter's wrapper; checked."""
    if isinstance(model, nn.DataParallel):
        raise InputError(
            "model",
            "a model outside nn.DataParallel, whose replicas lose the fused head",
            type(model).__name__,
            "Start one process per device with torchrun.",
        )
    _check_adapter(model)
    unwrap = getattr(model, "get_base_model", None)
    lm = unwrap() if callable(unwrap) else model
    if not isinstance(lm, PreTrainedModel):
        raise InputError(
            "model",
            "a transformers PreTrainedModel, or a PeftModel around one",
            type(lm).__name__,
            "Attach before DistributedDataParallel, torch.compile or another wrapper.",
        )
    if lm.base_model is lm or lm.config.is_encoder_decoder:
        raise InputError(
            "model",
            "a decoder with a trunk (`base_model`) apart from its head",
            type(lm).__name__,
            "Load it with AutoModelForCausalLM, or train on its logits.",
        )
    return lm


def _check_adapter(model: Any) -> None:
    """Refuse prompt learning other than prefix tuning: it lengthens the input."""
    adapter: Any = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False) and adapter.peft_type != "PREFIX_TUNING":
        raise InputError(
            "model",
            "an adapter that leaves the input as long as it is",
            type(adapter).__name__,
            "LoRA and prefix tuning do.",
        )
