"""Adapters: LoRA on the trunk, heads trained whole, and unsupported ones."""

from __future__ import annotations

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)

from rao_kernels.errors import InputError
from rao_kernels.hf import attach_fused_head

from .models import batch, gradients, logps_from_logits, tiny_model, upstream


def _with_lora(order: str, **settings: object) -> PeftModel:
    """Return a model with a non-zero LoRA adapter, attached before or after adding it."""
    model = tiny_model("llama", torch.float64)
    settings = {"target_modules": ["q_proj", "v_proj"], **settings}
    config = LoraConfig(r=2, task_type="CAUSAL_LM", **settings)
    if order == "before":
        return _stirred(get_peft_model(attach_fused_head(model), config))
    return attach_fused_head(_stirred(get_peft_model(model, config)))


def _stirred(model: PeftModel) -> PeftModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double()


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("whole_head", [False, True])
def test_adapter_equals_logits_path(order: str, whole_head: bool) -> None:
    model = _with_lora(order, modules_to_save=["lm_head"] if whole_head else None)
    inputs = batch()
    weights = upstream(inputs["logp_targets"])
    expected = logps_from_logits(model, inputs)
    logps = model(**inputs).token_logps
    torch.testing.assert_close(logps, expected)
    found = gradients(model, logps, weights)
    torch.testing.assert_close(found, gradients(model, expected, weights))
    assert any("lm_head" in name for name in found) == whole_head


@pytest.mark.parametrize("whole_head", [False, True])
def test_disabled_adapter_is_the_base_model(whole_head: bool) -> None:
    inputs = batch()
    base = logps_from_logits(tiny_model("llama", torch.float64), inputs)
    model = _with_lora("after", modules_to_save=["lm_head"] if whole_head else None)
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model(**inputs).token_logps, base)
    assert not torch.allclose(model(**inputs).token_logps, base)


def test_frozen_head_gets_no_gradient_and_checkpointing_works() -> None:
    model, inputs = _with_lora("before"), batch()
    weights = upstream(inputs["logp_targets"])
    expected = gradients(model, model(**inputs).token_logps, weights)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    found = gradients(model, model(**inputs).token_logps, weights)
    torch.testing.assert_close(found, expected)
    assert all("lora" in name for name in found)


@pytest.mark.parametrize("order", ["before", "after"])
def test_adapter_on_the_head_is_refused(order: str) -> None:
    with pytest.raises(InputError, match="a head without an adapter.*modules_to_save"):
        _with_lora(order, target_modules=["q_proj", "lm_head"])(**batch())


def test_adapter_that_lengthens_the_input_is_refused() -> None:
    settings = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    for adapter in (PromptTuningConfig(**settings), PromptEncoderConfig(**settings)):
        with pytest.raises(InputError, match=f"{type(adapter).__name__}.*LoRA"):
            attach_fused_head(get_peft_model(tiny_model("llama"), adapter))
    model = get_peft_model(tiny_model("llama"), PrefixTuningConfig(**settings))
    inputs = batch()
    expected = logps_from_logits(model, inputs)
    torch.testing.assert_close(attach_fused_head(model)(**inputs).token_logps, expected)
