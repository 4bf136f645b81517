"""Samples of a model are those of its distribution, repeatable, and leave the process as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from rao_kernels.errors import InputError
from rao_kernels.generation import SamplingOptions, TransformersSampler, make_sampler
from rao_kernels.hf import attach_fused_head

from .. import seeds
from ..train.tiny import tiny_model, tiny_tokenizer

PROMPTS = [[1, 7, 8, 9], [1, 5], [1, 6, 11, 12, 13, 14, 20]]
SHARED = Path(__file__).parents[3] / "shared"


def sampler(model: nn.Module | None = None) -> TransformersSampler:
    return TransformersSampler(tiny_model() if model is None else model, tiny_tokenizer())


def ids_of(samples: list[list[Any]]) -> list[list[list[int]]]:
    return [[one.ids for one in group] for group in samples]


def greedy(model: LlamaForCausalLM, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens, one forward without padding and cache for each."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return ids[len(prompt) :]


def test_padding_does_not_change_what_is_sampled() -> None:
    """Prompts of different lengths, in batches of any size, get the tokens of a plain loop."""
    model = tiny_model()
    expected = [greedy(model, prompt, 6) for prompt in PROMPTS]
    for batch_size in (1, 2, 3):
        options = SamplingOptions(temperature=0, max_new_tokens=6, batch_size=batch_size)
        found = sampler(model).sample(PROMPTS, options, seed=0)
        assert [group[0].ids for group in found] == expected


def test_same_arguments_same_samples_and_the_random_state_stays() -> None:
    options = SamplingOptions(responses=3, max_new_tokens=8, batch_size=2)
    one = sampler()
    seeds.seed_torch(5)
    before = torch.get_rng_state()
    first = one.sample(PROMPTS, options, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert one.sample(PROMPTS, options, seed=3) == first
    assert one.sample(PROMPTS, options, seed=4) != first
    assert [len(group) for group in first] == [3, 3, 3]
    assert first[0][0] != first[0][1]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_the_models(temperature: float) -> None:
    """Two responses' first tokens, counted over many draws, follow softmax(logits / t)."""
    model = tiny_model()
    options = SamplingOptions(
        responses=4000, max_new_tokens=1, temperature=temperature, batch_size=2
    )
    for prompt, group in zip(PROMPTS, sampler(model).sample(PROMPTS, options, seed=1), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1].double()
        expected = (logits / temperature).softmax(-1)
        counts = torch.bincount(torch.tensor([one.ids[0] for one in group]), minlength=64)
        # Chi-squared with at most 63 degrees of freedom: mean 63, deviation 11.
        common = expected * 4000 >= 5
        chi = ((counts - 4000 * expected).square() / (4000 * expected))[common].sum()
        assert float(chi) < common.sum() + 6 * (2 * common.sum()) ** 0.5


def test_top_k_and_top_p_cut_the_tail() -> None:
    model = tiny_model()
    with torch.no_grad():
        order = model(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1).sort(descending=True)
    nucleus = int((order.values.cumsum(0) < 0.3).sum()) + 1
    for settings, kept in (({"top_k": 3}, 3), ({"top_p": 0.3}, nucleus)):
        options = SamplingOptions(responses=300, max_new_tokens=1, **settings)
        (group,) = sampler(model).sample(PROMPTS[:1], options, seed=0)
        assert {one.ids[0] for one in group} == set(order.indices[:kept].tolist())


def test_settings_of_the_models_generation_config_do_not_count() -> None:
    """Chat models ship repetition penalties and top_k; samples would not be the policy's."""
    plain = sampler().sample(PROMPTS, SamplingOptions(responses=2, max_new_tokens=6), seed=0)
    model = tiny_model()
    own = model.generation_config
    own.repetition_penalty, own.top_k, own.temperature, own.do_sample = 1.9, 2, 0.1, True
    own.suppress_tokens, own.max_length = list(range(5, 30)), 3
    before = own.to_dict()
    found = sampler(model).sample(PROMPTS, SamplingOptions(responses=2, max_new_tokens=6), seed=0)
    assert found == plain
    assert model.generation_config is own and own.to_dict() == before


def test_a_response_ends_at_any_end_token() -> None:
    """Those of the generation config, and the tokenizer's; the token itself is kept."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    options = SamplingOptions(temperature=0, max_new_tokens=6)

    def found() -> list[tuple[list[int], bool]]:
        samples = TransformersSampler(model, tokenizer).sample(PROMPTS, options, seed=0)
        return [(one.ids, one.finished) for (one,) in samples]

    whole = [ids for ids, _ in found()]
    assert [len(ids) for ids in whole] == [6, 6, 6]

    def cut(ends: set[int]) -> list[tuple[list[int], bool]]:
        lengths = [next((i for i, one in enumerate(ids) if one in ends), None) for ids in whole]
        return [
            (ids, False) if end is None else (ids[: end + 1], True)
            for ids, end in zip(whole, lengths, strict=True)
        ]

    first, third = whole[0][0], whole[0][2]
    model.generation_config.eos_token_id = third
    assert found() == cut({third}) and found()[0][1]
    model.generation_config.eos_token_id = [63, whole[1][1], third]
    assert found() == cut({63, whole[1][1], third})
    # The tokenizer's own: a token that the model says first, made one of its vocabulary.
    tokenizer.add_tokens([f"<{number}>" for number in range(len(tokenizer), 64)])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
    model.generation_config.eos_token_id = 63
    assert found() == cut({63, first}) and found()[0] == ([first], True)


def test_dropout_is_off_and_the_modes_of_modules_stay() -> None:
    model = tiny_model()
    options = SamplingOptions(responses=2, max_new_tokens=6)
    plain = sampler(model).sample(PROMPTS, options, seed=0)
    model.model.embed_tokens = nn.Sequential(model.model.embed_tokens, nn.Dropout(0.9))
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert sampler(model).sample(PROMPTS, options, seed=0) == plain
    assert [module.training for module in model.modules()] == modes
    assert all(one.grad is None for one in model.parameters())


def test_fused_head_and_adapter_sample_what_the_plain_model_does() -> None:
    peft = pytest.importorskip("peft")
    options = SamplingOptions(responses=2, max_new_tokens=6)
    plain = sampler().sample(PROMPTS, options, seed=0)
    assert sampler(attach_fused_head(tiny_model())).sample(PROMPTS, options, seed=0) == plain
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = attach_fused_head(peft.get_peft_model(tiny_model(), config))
    # A new adapter changes nothing; a trained one does, and what is sampled is its.
    assert sampler(adapted).sample(PROMPTS, options, seed=0) == plain
    with torch.no_grad():
        for name, one in adapted.named_parameters():
            if "lora_B" in name:
                one.normal_(generator=seeds.generator(1)).mul_(0.5)
    found = sampler(adapted).sample(PROMPTS, options, seed=0)
    assert found != plain
    merged = adapted.merge_and_unload()
    assert sampler(merged).sample(PROMPTS, options, seed=0) == found


def test_in_bf16_weights_and_in_autocast() -> None:
    options = SamplingOptions(temperature=0, max_new_tokens=6)
    half = tiny_model(dtype=torch.bfloat16)
    found = sampler(half).sample(PROMPTS, options, seed=0)
    assert [len(one[0].ids) for one in found] == [len(greedy(half, p, 6)) for p in PROMPTS]
    seen: list[torch.dtype] = []
    model = attach_fused_head(tiny_model())
    model.model.layers[0].mlp.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        sampler(model).sample(PROMPTS, options, seed=0)
    assert set(seen) == {torch.bfloat16}
    # The model goes on training: nothing of the sampling is left in it.
    model(torch.tensor([PROMPTS[0]]), labels=torch.tensor([PROMPTS[0]])).loss.backward()


def test_the_model_is_sampled_as_it_is_at_each_call() -> None:
    model = tiny_model()
    one = sampler(model)
    options = SamplingOptions(responses=2, max_new_tokens=6)
    before = one.sample(PROMPTS, options, seed=0)
    model.load_state_dict(tiny_model(1).state_dict())
    assert one.sample(PROMPTS, options, seed=0) == sampler(tiny_model(1)).sample(
        PROMPTS, options, seed=0
    )
    assert one.sample(PROMPTS, options, seed=0) != before


def test_text_of_a_response_keeps_the_space_it_begins_with() -> None:
    """So that prompt + text, encoded again by training, are the tokens that were sampled."""
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is absent")
    folder = SHARED / "models" / "stories260k"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer("Once upon a time, there was").input_ids
    (group,) = TransformersSampler(model, tokenizer).sample(
        [prompt], SamplingOptions(max_new_tokens=12, temperature=0), seed=0
    )
    assert group[0].text.startswith(" ")
    again = tokenizer(f"Once upon a time, there was{group[0].text}").input_ids
    assert again == [*prompt, *group[0].ids]


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"responses": 0}, "responses"),
        ({"temperature": 0, "responses": 2}, "responses"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        # The model has 128 positions, the longest prompt 7 tokens.
        ({"max_new_tokens": 122}, "max_new_tokens"),
    ],
)
def test_options_out_of_range(settings: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        sampler().sample(PROMPTS, SamplingOptions(**settings), seed=0)
    assert caught.value.argument == argument


def test_other_wrong_arguments() -> None:
    with pytest.raises(InputError, match=r"prompts\[1\]"):
        sampler().sample([[1], []], SamplingOptions(), seed=0)
    with pytest.raises(InputError, match="seed"):
        sampler().sample(PROMPTS, SamplingOptions(max_new_tokens=1), seed=-1)
    with pytest.raises(InputError, match="`generate`"):
        TransformersSampler(nn.Linear(2, 2), tiny_tokenizer())
    with pytest.raises(InputError, match="'transformers' or 'vllm'"):
        make_sampler("other", tiny_model(), tiny_tokenizer())  # type: ignore[arg-type]
    assert isinstance(
        make_sampler("transformers", tiny_model(), tiny_tokenizer()), TransformersSampler
    )


def test_no_prompts_no_samples() -> None:
    assert json.dumps(sampler().sample([], SamplingOptions(), seed=0)) == "[]"
