"""Fused log-probs and all gradients equal those of the model's own logits, family by family."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rao_kernels.errors import InputError
from rao_kernels.hf import FusedHead, FusedLMOutput, attach_fused_head, fused_head, head
from rao_kernels.hf.transforms import HeadTransform, head_transform

from .. import seeds
from .models import FAMILIES, batch, gradients, logps_from_logits, tiny_model, upstream

# Transform of each family's head output, with the scalars that models.py sets.
TRANSFORMS = {
    "gemma2": HeadTransform(softcap=7.0),
    "recurrent_gemma": HeadTransform(softcap=7.0),
    "cohere": HeadTransform(scale=0.37),
    "granite": HeadTransform(scale=1 / 2.7),
    "hyperclovax": HeadTransform(scale=0.6),
    "falcon_h1": HeadTransform(scale=1.7),
}


def _scored(
    model: PreTrainedModel, inputs: dict[str, Tensor], *, fused: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    logps = model(**inputs).token_logps if fused else logps_from_logits(model, inputs)
    weights = upstream(inputs["logp_targets"])
    return logps.detach(), gradients(model, logps, weights)


def _error(got: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Return the largest relative error of any parameter's gradient."""
    assert got.keys() == exact.keys()
    floor = 1e-6 * max(float(value.norm()) for value in exact.values())
    return max(
        float((got[name].double() - exact[name]).norm() / (exact[name].norm() + floor))
        for name in exact
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_equals_logits_path(family: str) -> None:
    model, inputs = tiny_model(family, torch.float64), batch()
    expected, expected_grads = _scored(model, inputs, fused=False)
    attach_fused_head(model)
    logps, grads = _scored(model, inputs, fused=True)
    assert isinstance(model.get_output_embeddings(), FusedHead)
    torch.testing.assert_close(logps, expected, rtol=1e-10, atol=1e-10)
    assert _error(grads, expected_grads) < 1e-10
    assert (logps[inputs["logp_targets"] == -100] == 0).all()
    assert float(expected.min()) < -5  # peaked enough for a softcap and a scale to matter


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_as_exact_as_logits_path(family: str) -> None:
    model, inputs = tiny_model(family), batch()
    exact, exact_grads = _scored(copy.deepcopy(model).double(), inputs, fused=False)
    plain, plain_grads = _scored(model, inputs, fused=False)
    attach_fused_head(model)
    logps, grads = _scored(model, inputs, fused=True)
    assert logps.dtype == torch.float32
    plain_error = float((plain - exact).abs().max())
    assert float((logps - exact).abs().max()) <= 2 * plain_error + 1e-6
    assert _error(grads, exact_grads) <= 2 * _error(plain_grads, exact_grads) + 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_transform_is_read_from_config(family: str) -> None:
    transform = head_transform(tiny_model(family).config)
    expected = TRANSFORMS.get(family, HeadTransform())
    assert transform.scale == pytest.approx(expected.scale)
    assert transform.softcap == expected.softcap


def test_scale_before_softcap_is_folded() -> None:
    config = tiny_model("gemma2").config
    config.output_multiplier = 0.2
    logits = torch.linspace(-50, 50, 11, dtype=torch.float64)
    expected = 7.0 * torch.tanh(0.2 * logits / 7.0)
    torch.testing.assert_close(head_transform(config)(logits), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", TRANSFORMS)
def test_parity_check_misses_no_transform(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family, dtype)
    attach_fused_head(model)
    fused_head.detach_fused_head(model)
    transform = TRANSFORMS[family]
    dropped = "softcap" if transform.softcap is not None else "scale"
    default = getattr(HeadTransform(), dropped)
    without = dataclasses.replace(transform, **{dropped: default})
    monkeypatch.setattr(fused_head, "head_transform", lambda config: without)
    seen = "as with another softcap" if dropped == "softcap" else "logits are .* times those of"
    with pytest.raises(InputError, match=seen):
        attach_fused_head(model)
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    assert "forward" not in vars(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parity_check_misses_no_bias(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("phi", dtype)
    op = head.linear_token_stats
    monkeypatch.setattr(head, "linear_token_stats", lambda *a, bias, **k: op(*a, bias=None, **k))
    with pytest.raises(InputError, match="head's arithmetic differs"):
        attach_fused_head(model)


def test_parity_check_knows_false_friend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_head, "head_transform", lambda config: HeadTransform(scale=0.4))
    with pytest.raises(InputError, match=r"logits are 2\.5 times those of"):
        attach_fused_head(tiny_model("mpt"))


def test_parity_check_sees_step_before_head() -> None:
    model = tiny_model("llama")

    class Stepping(type(model)):  # type: ignore[misc]
        def forward(self, *args: object, **kwargs: object) -> object:
            handle = self.lm_head.register_forward_pre_hook(lambda _, args: (args[0] * 1.5,))
            try:
                return super().forward(*args, **kwargs)
            finally:
                handle.remove()

    model.__class__ = Stepping
    with pytest.raises(InputError, match="changes the trunk's last hidden states"):
        attach_fused_head(model)


def test_parity_check_sees_narrower_logits() -> None:
    model = tiny_model("llama")

    class Sliced(type(model)):  # type: ignore[misc]
        def forward(self, *args: object, **kwargs: object) -> object:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits[..., :-3]
            return output

    model.__class__ = Sliced
    with pytest.raises(InputError, match="logits have 80 columns, its head 83"):
        attach_fused_head(model)


def test_parity_check_can_warn_or_stay_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_head, "head_transform", lambda config: HeadTransform())
    with pytest.warns(UserWarning, match="fused log-probs of CohereForCausalLM"):
        model = attach_fused_head(tiny_model("cohere"), check_parity="warn")
    assert isinstance(model(**batch()), FusedLMOutput)
    attach_fused_head(tiny_model("cohere"), check_parity="off")


def test_parity_check_leaves_modes_and_random_state_alone() -> None:
    model = tiny_model("gpt2", attn_pdrop=0.5)
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    attach_fused_head(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_mixture_of_experts_gives_aux_loss() -> None:
    model, inputs = tiny_model("mixtral", torch.float64), batch()
    plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected = model(**plain).aux_loss
    expected_grads = torch.autograd.grad(expected, model.model.layers[0].mlp.gate.weight)
    attach_fused_head(model)
    aux_loss = model(**inputs).aux_loss
    torch.testing.assert_close(aux_loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(aux_loss, model.model.layers[0].mlp.gate.weight), expected_grads
    )
    assert model(**inputs, output_router_logits=False).aux_loss is None


def test_trained_model(shared_dir: Path) -> None:
    folder = shared_dir / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = seeds.generator()
    prompt = torch.randint(3, 500, (2, 4), generator=generator)
    ids = model.generate(prompt, max_new_tokens=28, do_sample=False)
    targets = ids.roll(-1, dims=1)
    targets[:, -1] = -100
    inputs = {"input_ids": ids, "logp_targets": targets}
    exact, exact_grads = _scored(copy.deepcopy(model).double(), inputs, fused=False)
    plain, plain_grads = _scored(model, inputs, fused=False)
    attach_fused_head(model)
    output = model(**inputs, logp_stats=("is_top1",))
    logps, grads = _scored(model, inputs, fused=True)
    plain_error = float((plain - exact).abs().max())
    assert float((logps - exact).abs().max()) <= 2 * plain_error + 1e-6
    assert _error(grads, exact_grads) <= 2 * _error(plain_grads, exact_grads) + 1e-6
    # Generated greedy tokens are the most likely ones: top-1.
    assert output.is_top1[:, 3:-1].float().mean() > 0.9
