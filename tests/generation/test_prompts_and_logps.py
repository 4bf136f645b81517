"""Prompt tokens are training's, and log-probs of samples those of the model's logits."""

from __future__ import annotations

import pytest
import torch

from rao_kernels.data import Record, TokenizeOptions, tokenize_records
from rao_kernels.errors import DataError, InputError
from rao_kernels.generation import (
    Sample,
    SamplingOptions,
    TransformersSampler,
    prompt_ids,
    sampled_logps,
)

from ..train.tiny import tiny_model, tiny_tokenizer

PROMPTS = [[1, 7, 8, 9], [1], [1, 6, 11, 12, 13]]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("prompt_format", ["auto", "plain"])
def test_prompt_ids_are_those_of_training(chat: bool, prompt_format: str) -> None:
    tokenizer = tiny_tokenizer(chat=chat)
    record = Record("say a", ["b"], [1.0], "here")
    (row,) = tokenize_records([record], tokenizer, TokenizeOptions(prompt_format=prompt_format))
    assert prompt_ids(record, tokenizer, prompt_format) == row.prompt.tolist()


def test_prompt_ids_of_messages_and_of_none() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    turns = [{"role": "user", "content": "a"}]
    found = prompt_ids(Record(turns, [], None, "here"), tokenizer)
    assert found[-1] == tokenizer.convert_tokens_to_ids("<a>")
    assert (
        found
        == tokenizer(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True),
            add_special_tokens=False,
        ).input_ids
    )
    with pytest.raises(DataError, match="here: no prompt"):
        prompt_ids(Record("", [], None, "here"), tokenizer)
    with pytest.raises(DataError, match="no chat template"):
        prompt_ids(Record(turns, [], None, "here"), tiny_tokenizer())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logps_are_those_of_the_logits(temperature: float) -> None:
    """At the temperature that they were sampled at."""
    model = tiny_model()
    samples = TransformersSampler(model, tiny_tokenizer()).sample(
        PROMPTS, SamplingOptions(responses=2, max_new_tokens=7), seed=0
    )
    expected = []
    for prompt, group in zip(PROMPTS, samples, strict=True):
        for one in group:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *one.ids]])).logits[0]
            logps = (logits / temperature).log_softmax(-1)
            rows = torch.arange(len(prompt) - 1, len(prompt) + len(one.ids) - 1)
            expected += logps[rows, torch.tensor(one.ids)].tolist()
    model.train()
    found = sampled_logps(model, PROMPTS, samples, temperature)
    assert [[len(logps) for logps in group] for group in found] == [
        [len(one.ids) for one in group] for group in samples
    ]
    flat = [value for group in found for logps in group for value in logps]
    assert flat == pytest.approx(expected, abs=2e-5)
    assert model.training


def test_logps_of_the_likeliest_token_alone_are_refused() -> None:
    with pytest.raises(InputError, match="temperature"):
        sampled_logps(tiny_model(), [[1]], [[Sample([5], "", False)]], 0.0)
