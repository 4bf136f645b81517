"""Reference log-probabilities are those of plain logits, and the key sees what they depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rao_kernels.data import (
    Collator,
    PreferenceDataset,
    TokenizeOptions,
    load_records,
    tokenize_records,
)
from rao_kernels.hf import attach_fused_head
from rao_kernels.refcache import (
    config_fingerprint,
    model_fingerprint,
    reference_mode,
    score_batch,
    template_fingerprint,
    tokenizer_fingerprint,
)
from rao_kernels.types import EngineOptions
from tests.train.tiny import tiny_model, tiny_rows, tiny_tokenizer


def dataset() -> PreferenceDataset:
    records = load_records(tiny_rows(5))
    return PreferenceDataset(tokenize_records(records, tiny_tokenizer(), TokenizeOptions()))


@pytest.mark.parametrize("prefix_length", [1, 3])
def test_sums_and_tokens_are_those_of_plain_logits(prefix_length: int) -> None:
    data, plain = dataset(), tiny_model()
    model = attach_fused_head(tiny_model())
    with reference_mode(model):
        rows = score_batch(
            model,
            Collator(0, prefix_length)([data[i] for i in range(5)]),
            engine_options=EngineOptions(),
            per_token=True,
        )
    assert len(rows) == 5
    for values, row in zip(rows, data.rows, strict=True):
        longest = max(len(row.prompt) + len(response) for response in row.responses)
        assert values.tokens is not None
        tokens = values.tokens.view(len(row.responses), longest)
        for number, response in enumerate(row.responses):
            ids = torch.cat([row.prompt, response]).long()[None]
            logps = plain(input_ids=ids).logits.double().log_softmax(-1)[0, :-1]
            logps = logps.gather(-1, ids[0, 1:, None])[:, 0]
            start = len(row.prompt) - 1
            expected = logps[start:]
            assert values.responses[number] == pytest.approx(expected.sum().item(), abs=2e-4)
            torch.testing.assert_close(
                tokens[number, start : ids.shape[1] - 1].double(), expected, rtol=0, atol=1e-4
            )
            prompt = logps[prefix_length - 1 : start].sum().item()
            assert values.prompt == pytest.approx(prompt, abs=2e-4)


def test_reference_mode_puts_everything_back() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(r=2, init_lora_weights=False))
    ids = torch.arange(8)[None]
    base = tiny_model()(input_ids=ids).logits
    model.train()
    with reference_mode(model):
        assert not torch.is_grad_enabled()
        assert not model.training
        torch.testing.assert_close(model(input_ids=ids).logits, base)
    assert model.training
    assert torch.is_grad_enabled()
    assert not torch.allclose(model(input_ids=ids).logits, base)


def test_fingerprint_of_a_model() -> None:
    model, other = tiny_model(), tiny_model()
    assert model_fingerprint(model) == model_fingerprint(other)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-6
    assert model_fingerprint(model) != model_fingerprint(other)
    assert model_fingerprint(model) != model_fingerprint(tiny_model(dtype=torch.bfloat16))
    adapted = get_peft_model(tiny_model(), LoraConfig(r=2, modules_to_save=["lm_head"]))
    assert model_fingerprint(adapted) == model_fingerprint(model)


def test_fingerprints_of_settings() -> None:
    config, other = tiny_model().config, tiny_model().config
    other.use_cache = not config.use_cache
    assert config_fingerprint(config) == config_fingerprint(other)
    other.rms_norm_eps = 0.5
    assert config_fingerprint(config) != config_fingerprint(other)
    plain, chat = tiny_tokenizer(), tiny_tokenizer(chat=True)
    assert tokenizer_fingerprint(plain) == tokenizer_fingerprint(chat)
    assert template_fingerprint(plain) == "none"
    before = template_fingerprint(chat)
    chat.chat_template += " "
    assert template_fingerprint(chat) != before
    changed: Any = tiny_tokenizer()
    changed.add_tokens(["zz"])
    assert tokenizer_fingerprint(plain) != tokenizer_fingerprint(changed)


def test_key_sees_every_part(tmp_path: Path) -> None:
    """A run with another setting makes another folder; the same run finds its own."""
    from tests.train.test_trainer import trainer

    def folders() -> int:
        return len(list(tmp_path.glob("ref-*")))

    shared = {"ref_cache_dir": str(tmp_path)}
    trainer(tmp_path / "a", **shared)
    trainer(tmp_path / "b", ref_cache="require", **shared)
    assert folders() == 1
    for number, (changes, model) in enumerate(
        [
            ({"max_length": 100}, None),
            ({"prefix_length": 2}, None),
            ({"ref_per_token": True}, None),
            ({"bf16": True}, None),
            ({}, tiny_model(1)),
            ({"rows": tiny_rows(6)}, None),
        ],
        2,
    ):
        trainer(tmp_path / "c", model=model, **shared, **changes)
        assert folders() == number, changes
