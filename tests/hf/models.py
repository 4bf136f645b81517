"""Tiny random causal language models, one per treatment of the head among model families.

Head weights are large enough for a softcap to matter, and every scalar on the logits differs from
its default, so that a missing transform changes the numbers.
"""

from __future__ import annotations

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from .. import seeds

VOCAB = 83
PAD = 0

_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# name: (config class, model class, settings on top of the small ones)
_FAMILIES: dict[str, tuple[str, str, dict[str, object]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {"final_logit_softcapping": 7.0}),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        "RecurrentGemmaForCausalLM",
        {"logits_soft_cap": 7.0, "lru_width": 24, "num_hidden_layers": 3},
    ),
    "cohere": ("CohereConfig", "CohereForCausalLM", {"logit_scale": 0.37}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", {"logits_scaling": 2.7}),
    "hyperclovax": ("HyperCLOVAXConfig", "HyperCLOVAXForCausalLM", {"logits_scaling": 0.6}),
    "falcon_h1": (
        "FalconH1Config",
        "FalconH1ForCausalLM",
        {
            "lm_head_multiplier": 1.7,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
    ),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {
            "num_local_experts": 4,
            "output_router_logits": True,
            "experts_implementation": "eager",
        },
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "n_embd": 24,
            "n_layer": 2,
            "n_head": 4,
            "attn_pdrop": 0,
            "embd_pdrop": 0,
            "resid_pdrop": 0,
        },
    ),
    "phi": ("PhiConfig", "PhiForCausalLM", {}),
    "mpt": (
        "MptConfig",
        "MptForCausalLM",
        {"d_model": 24, "n_heads": 4, "n_layers": 2, "logit_scale": 0.4},
    ),
}
FAMILIES = tuple(_FAMILIES)


def tiny_model(
    name: str, dtype: torch.dtype = torch.float32, **settings: object
) -> PreTrainedModel:
    """Return a random model of a family, in train mode, with logits several units wide."""
    config_name, class_name, own = _FAMILIES[name]
    config = getattr(transformers, config_name)(**{**_SMALL, **own, **settings})
    seeds.seed_torch()
    model = getattr(transformers, class_name)(config).to(dtype)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.normal_(std=3.0 / 24**0.5)
        if head.bias is not None:
            head.bias.normal_()
    return model.train()


def batch(size: int = 3, length: int = 9) -> dict[str, Tensor]:
    """Return ids, mask and shifted targets with right padding; some targets are -100."""
    generator = seeds.generator(1)
    ids = torch.randint(3, VOCAB, (size, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, -3:] = 0
    ids = ids.masked_fill(mask == 0, PAD)
    targets = ids.roll(-1, dims=1).masked_fill(mask.roll(-1, dims=1) == 0, -100)
    targets[:, -1] = -100
    targets[0, 2] = -100
    return {"input_ids": ids, "attention_mask": mask, "logp_targets": targets}


def logps_from_logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Return the expected log-probs, from the model's own logits; 0.0 without target."""
    targets = inputs["logp_targets"]
    plain = {name: value for name, value in inputs.items() if not name.startswith("logp_")}
    logits = model(**plain).logits
    logps = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    chosen = logps.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return chosen.masked_fill(targets == -100, 0.0)


def upstream(targets: Tensor) -> Tensor:
    """Return a gradient for each token log-prob, of both signs."""
    return torch.linspace(-1.0, 1.3, targets.numel(), dtype=torch.float64).view(targets.shape)


def gradients(model: PreTrainedModel, logps: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a weighted sum of log-probs in all parameters, and clear them."""
    (logps * weights.to(logps)).sum().backward()
    found = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()
    return found
