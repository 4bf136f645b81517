"""`attach_fused_head`: its effects on a model, and the models and calls it refuses."""

from __future__ import annotations

import copy
import inspect
import pickle
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rao_kernels.engine.work import record_work
from rao_kernels.errors import InputError
from rao_kernels.hf import FusedHead, FusedLMOutput, attach_fused_head, detach_fused_head

from .models import VOCAB, batch, gradients, logps_from_logits, tiny_model, upstream


@pytest.fixture
def model() -> PreTrainedModel:
    return attach_fused_head(tiny_model("llama", torch.float64))


def _plain_head(model: PreTrainedModel) -> bool:
    return type(model.get_output_embeddings()) is nn.Linear


# Results of the call


def test_output_has_what_was_asked(model: PreTrainedModel) -> None:
    inputs = batch()
    output = model(**inputs)
    assert isinstance(output, FusedLMOutput)
    assert (output.entropy, output.is_top1, output.aux_loss) == (None, None, None)
    output = model(**inputs, logp_stats=("is_top1", "entropy"))
    targets = inputs["logp_targets"]
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    scored = targets != -100
    torch.testing.assert_close(output.entropy, entropy.masked_fill(~scored, 0.0))
    assert torch.equal(output.is_top1, (logits.argmax(-1) == targets) & scored)


def test_positional_arguments_keep_their_names(model: PreTrainedModel) -> None:
    inputs = batch()
    expected = model(**inputs).token_logps
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    logps = model(ids, mask, logp_targets=inputs["logp_targets"]).token_logps
    assert torch.equal(logps, expected)
    with pytest.raises(TypeError, match="input_ids"):
        model(ids, input_ids=ids, logp_targets=inputs["logp_targets"])


def test_embeddings_instead_of_ids(model: PreTrainedModel) -> None:
    inputs = batch()
    expected = model(**inputs).token_logps
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(model(inputs_embeds=embeddings, **inputs).token_logps, expected)


@pytest.mark.parametrize("workspace_bytes", [0, None])
def test_engine_options_reach_the_op(model: PreTrainedModel, workspace_bytes: int | None) -> None:
    inputs = batch()
    expected = gradients(model, model(**inputs).token_logps, upstream(inputs["logp_targets"]))
    options = {"workspace_bytes": workspace_bytes, "backend": "eager"}
    logps = model(**inputs, engine_options=options).token_logps
    found = gradients(model, logps, upstream(inputs["logp_targets"]))
    torch.testing.assert_close(found, expected)
    with pytest.raises(InputError, match="options"):
        model(**inputs, engine_options={"unknown": 1})


# Values without gradient


def test_grad_mask_gives_values_everywhere_and_gradients_where_true() -> None:
    model, inputs = tiny_model("gemma2", torch.float64), batch()
    mask = torch.arange(9).expand(3, 9) >= 4
    weights = upstream(inputs["logp_targets"])
    expected = logps_from_logits(model, inputs)
    expected_grads = gradients(model, expected, weights * mask)
    attach_fused_head(model)
    output = model(**inputs, logp_grad_mask=mask, logp_stats=("entropy", "is_top1"))
    unmasked = model(**inputs, logp_stats=("entropy", "is_top1"))
    torch.testing.assert_close(output.token_logps, expected)
    torch.testing.assert_close(output.entropy, unmasked.entropy)
    assert torch.equal(output.is_top1, unmasked.is_top1)
    torch.testing.assert_close(gradients(model, output.token_logps, weights), expected_grads)


def test_rows_without_gradient_are_projected_forward_only(model: PreTrainedModel) -> None:
    inputs = batch()
    wanted = inputs["logp_targets"] != -100
    mask = torch.arange(9).expand(3, 9) >= 4
    with record_work() as work:
        model(**inputs, logp_grad_mask=mask).token_logps.sum().backward()
    assert work.rows_scored == int(wanted.sum())
    assert work.rows_differentiated == int((wanted & mask).sum())


@pytest.mark.parametrize("how", ["targets", "grad_mask"])
def test_all_rows_masked_is_a_connected_zero(model: PreTrainedModel, how: str) -> None:
    inputs = batch()
    if how == "targets":
        inputs["logp_targets"] = torch.full_like(inputs["logp_targets"], -100)
        loss = model(**inputs).token_logps.sum()
        assert loss.item() == 0.0
    else:
        mask = torch.zeros_like(inputs["logp_targets"], dtype=torch.bool)
        loss = model(**inputs, logp_grad_mask=mask).token_logps.sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_without_gradients_one_call_scores_all(model: PreTrainedModel) -> None:
    inputs = batch()
    mask = torch.zeros_like(inputs["logp_targets"], dtype=torch.bool)
    expected = model(**inputs).token_logps
    with torch.no_grad():
        logps = model(**inputs, logp_grad_mask=mask).token_logps
    assert torch.equal(logps, expected) and not logps.requires_grad


# Unchanged behaviour


def test_plain_calls_are_unchanged() -> None:
    model, inputs = tiny_model("gpt2").eval(), batch()
    plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    signature, logits = inspect.signature(model.forward), model(**plain).logits
    prompt = plain["input_ids"][:1, :4]
    text = model.generate(prompt, max_new_tokens=8, do_sample=False)
    attach_fused_head(model)
    assert inspect.signature(model.forward) == signature
    assert torch.equal(model(**plain).logits, logits)
    assert torch.equal(model.generate(prompt, max_new_tokens=8, do_sample=False), text)
    loss = model(**plain, labels=plain["input_ids"]).loss
    assert loss.requires_grad
    assert model.lm_head.weight is model.transformer.wte.weight


def test_second_attach_does_nothing(model: PreTrainedModel) -> None:
    forward = vars(model)["forward"]
    assert attach_fused_head(model) is model
    assert vars(model)["forward"] is forward


def test_detach_undoes_attach(model: PreTrainedModel) -> None:
    assert detach_fused_head(model) is model
    assert _plain_head(model) and "forward" not in vars(model)
    assert detach_fused_head(model) is model
    with pytest.raises(AttributeError):
        model(**batch()).token_logps  # noqa: B018


def test_deepcopy_runs_its_own_weights(model: PreTrainedModel) -> None:
    inputs = batch()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert twin.forward.__self__ is twin
    expected = logps_from_logits(twin, inputs)
    torch.testing.assert_close(twin(**inputs).token_logps, expected)
    assert not torch.allclose(model(**inputs).token_logps, expected)


def test_saved_model_is_plain(model: PreTrainedModel, tmp_path: Path) -> None:
    inputs = batch()
    expected = model(**inputs).token_logps
    model.save_pretrained(tmp_path)
    assert model.config.architectures == ["LlamaForCausalLM"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(loaded) is type(model) and _plain_head(loaded)
    torch.testing.assert_close(attach_fused_head(loaded)(**inputs).token_logps, expected)


def test_pickling_a_whole_model_says_what_to_do(model: PreTrainedModel, tmp_path: Path) -> None:
    """Loaded again the model would have lost its fused forward without an error."""
    inputs = batch()
    expected = model(**inputs).token_logps
    with pytest.raises(InputError, match="save_pretrained.*detach_fused_head"):
        pickle.dumps(model)
    with pytest.raises(InputError, match="save_pretrained.*detach_fused_head"):
        torch.save(model, tmp_path / "model.pt")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert torch.equal(model(**inputs).token_logps, expected)
    loaded = pickle.loads(pickle.dumps(detach_fused_head(model)))
    assert torch.equal(attach_fused_head(loaded)(**inputs).token_logps, expected)
    assert loaded.forward.__self__ is loaded


def test_a_forward_that_is_its_class_s_own_is_no_obstacle() -> None:
    """Unpickled models that other libraries wrapped have it on the instance."""
    model = tiny_model("llama")
    model.forward = types.MethodType(type(model).forward, model)
    attach_fused_head(model)
    assert isinstance(model(**batch()), FusedLMOutput)


# Together with other libraries


def test_gradient_checkpointing(model: PreTrainedModel) -> None:
    inputs = batch()
    weights = upstream(inputs["logp_targets"])
    expected = gradients(model, model(**inputs).token_logps, weights)
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(gradients(model, model(**inputs).token_logps, weights), expected)


def test_bf16_autocast_is_as_exact_as_logits_path() -> None:
    model, inputs = tiny_model("gemma2"), batch()
    weights = upstream(inputs["logp_targets"])
    exact = logps_from_logits(copy.deepcopy(model).double(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        plain = logps_from_logits(model, inputs)
        attach_fused_head(model)
        logps = model(**inputs).token_logps
    assert logps.dtype == torch.float32
    plain_error = float((plain - exact).abs().max())
    assert float((logps - exact).abs().max()) <= 2 * plain_error
    found = gradients(model, logps, weights)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert all(bool(gradient.any()) for gradient in found.values())


def test_accelerate_keeps_autocast_and_unwraps() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    inputs = batch()
    model = attach_fused_head(tiny_model("llama"))
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    seen: list[torch.dtype] = []
    model.lm_head.register_forward_pre_hook(
        lambda *_: (
            seen.append(torch.get_autocast_dtype("cpu"))
            if torch.is_autocast_enabled("cpu")
            else None
        )
    )
    try:
        prepared = accelerator.prepare(model)
        assert prepared(**inputs).token_logps.dtype == torch.float32
        assert seen == [torch.bfloat16]
        assert attach_fused_head(prepared) is prepared
        with pytest.raises(InputError, match="wrapped since"):
            detach_fused_head(prepared)
        bare = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        assert isinstance(bare(**inputs), FusedLMOutput)
        assert _plain_head(detach_fused_head(bare))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_compiles_without_graph_break() -> None:
    model, inputs = attach_fused_head(tiny_model("llama")), batch()
    expected = model(**inputs).token_logps
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    logps = compiled(**inputs).token_logps
    torch.testing.assert_close(logps, expected)
    weights = upstream(inputs["logp_targets"])
    found = gradients(model, logps, weights)
    torch.testing.assert_close(found, gradients(model, expected, weights))


def test_resized_embeddings_need_a_second_attach(model: PreTrainedModel) -> None:
    inputs = batch()
    model.resize_token_embeddings(VOCAB + 5, mean_resizing=False)
    with pytest.raises(InputError, match="call attach_fused_head again"):
        model(**inputs)
    attach_fused_head(model)
    expected = logps_from_logits(model, inputs)
    torch.testing.assert_close(model(**inputs).token_logps, expected)


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "input_ids"}, "`labels`: expected None together with logp_targets"),
        ({"logits_to_keep": 3}, "`logits_to_keep`"),
        ({"logp_stats": ("perplexity",)}, r"`logp_stats`.*got \['perplexity'\]"),
        ({"logp_targets": torch.zeros(3, 8, dtype=torch.int64)}, r"`logp_targets`.*\[3, 9\]"),
        ({"logp_grad_mask": torch.ones(3, 9)}, "`logp_grad_mask`: expected a bool tensor"),
        ({"logp_grad_mask": torch.ones(9, dtype=torch.bool)}, r"`logp_grad_mask`.*\[3, 9\]"),
        ({"logp_grad_mask": torch.ones(3, 9), "logp_targets": None}, "`logp_targets`"),
    ],
)
def test_bad_calls(model: PreTrainedModel, change: dict[str, object], message: str) -> None:
    inputs = {**batch(), **change}
    if inputs.get("labels") == "input_ids":
        inputs["labels"] = inputs["input_ids"]
    with pytest.raises(InputError, match=message):
        model(**inputs)


class Linear4bit(nn.Linear):
    """Substitute for the quantised heads of other libraries."""


def _with_head(head: nn.Module) -> PreTrainedModel:
    model = tiny_model("llama")
    model.lm_head = head
    return model


def _patched_by_another() -> PreTrainedModel:
    model = tiny_model("llama")
    model.forward = lambda **kwargs: None
    return model


def _on_meta() -> PreTrainedModel:
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(tiny_model("llama").config)


def _encoder_decoder() -> PreTrainedModel:
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: _with_head(Linear4bit(24, VOCAB)), "plain torch.nn.Linear, got .*Linear4bit"),
        (lambda: _with_head(nn.Conv1d(24, VOCAB, 1)), "plain torch.nn.Linear, got .*Conv1d"),
        (lambda: _with_head(nn.Sequential()), "plain torch.nn.Linear"),
        (_patched_by_another, "one that another library put on the instance"),
        (_on_meta, "weights on the meta device"),
        (_encoder_decoder, "T5ForConditionalGeneration"),
        (lambda: tiny_model("llama").model, "a decoder with a trunk"),
        (lambda: nn.DataParallel(tiny_model("llama")), "torchrun"),
        (lambda: nn.Linear(3, 4), "a transformers PreTrainedModel"),
    ],
)
def test_models_that_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    model = build()
    with pytest.raises(InputError, match=message):
        attach_fused_head(model)
    assert not any(isinstance(module, FusedHead) for module in model.modules())


def test_unknown_check_is_refused() -> None:
    with pytest.raises(InputError, match="`check_parity`"):
        attach_fused_head(tiny_model("llama"), check_parity="maybe")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite"])
def test_temperature_divides_the_logits(family: str) -> None:
    """After the model's own scale and softcap, as sampling does."""
    model = attach_fused_head(tiny_model(family, torch.float64))
    inputs = batch()
    targets = inputs["logp_targets"]
    plain = {key: value for key, value in inputs.items() if not key.startswith("logp_")}
    weights = upstream(targets)
    for temperature in (0.7, 1.0, 2.5):
        logps = torch.log_softmax(model(**plain).logits / temperature, -1)
        chosen = logps.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        expected = chosen.masked_fill(targets == -100, 0.0)
        stats = ("entropy",)
        found = model(**inputs, logp_temperature=temperature, logp_stats=stats)
        torch.testing.assert_close(found.token_logps, expected)
        entropy = -(logps.exp() * logps).sum(-1).masked_fill(targets == -100, 0.0)
        torch.testing.assert_close(found.entropy, entropy)
        wanted = gradients(model, expected, weights)
        torch.testing.assert_close(gradients(model, found.token_logps, weights), wanted)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_that_are_refused(model: PreTrainedModel, temperature: float) -> None:
    with pytest.raises(InputError, match="`logp_temperature`"):
        model(**batch(), logp_temperature=temperature)
