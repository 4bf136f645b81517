"""Implicit rewards against the models' own logits in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rao_kernels.errors import InputError
from rao_kernels.rewards import ImplicitScorer, UnscoredError
from tests.train.tiny import save_tiny, tiny_model, tiny_tokenizer

from .models import candidates

WORDS = ["yes", "a longer answer", "no", "b"]


def dense(seed: int, prompt: str, response: str, *, chat: bool = False) -> float:
    """The log-prob of the response and its EOS after BOS and prompt, or after a user's turn."""

    def ids_of(text: str) -> list[int]:
        ids: list[int] = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
        return ids

    start = ids_of(f"<u>{prompt}</s>\n<a>") if chat else [1, *ids_of(prompt)]
    ids = [*start, *ids_of(response), 2]
    with torch.no_grad():
        logits = tiny_model(seed, torch.float64)(torch.tensor([ids])).logits[0]
    logps = logits.log_softmax(-1)[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    return float(logps[len(start) - 1 :].sum())


def test_beta_times_the_difference_of_log_probs(tmp_path: Path) -> None:
    policy, reference = (save_tiny(tmp_path / str(n), seed=n) for n in (0, 1))
    scorer = ImplicitScorer(policy, reference, beta=0.3, device="cpu", batch_size=3)
    found = scorer.score(candidates(WORDS))
    expected = [
        0.3 * (dense(0, f"say {word[::-1]}", word) - dense(1, f"say {word[::-1]}", word))
        for word in WORDS
    ]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert scorer.describe()["beta"] == 0.3


def test_prompts_are_written_as_in_the_training(tmp_path: Path) -> None:
    """A policy may have been trained on plain text though its tokenizer has a template."""
    policy, reference = (save_tiny(tmp_path / str(n), seed=n, chat=True) for n in (0, 1))
    found, described = {}, []
    for given in ("plain", "chat", "auto"):
        scorer = ImplicitScorer(policy, reference, prompt_format=given, beta=1.0, device="cpu")
        found[given] = torch.tensor(scorer.score(candidates(WORDS)))
        described.append(scorer.describe()["prompt_format"])
    assert described == ["plain", "chat", "auto"]
    for name, chat in (("plain", False), ("chat", True), ("auto", True)):
        expected = [
            dense(0, f"say {word[::-1]}", word, chat=chat)
            - dense(1, f"say {word[::-1]}", word, chat=chat)
            for word in WORDS
        ]
        torch.testing.assert_close(found[name], torch.tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", ["chat", "template"])
def test_a_prompt_format_that_the_policy_lacks_is_refused(tmp_path: Path, wrong: Any) -> None:
    name = save_tiny(tmp_path / "model")
    with pytest.raises(InputError, match="`implicit_prompt_format`"):
        ImplicitScorer(name, name, prompt_format=wrong, device="cpu")


def test_a_model_has_no_implicit_reward_against_itself(tmp_path: Path) -> None:
    name = save_tiny(tmp_path / "model")
    assert ImplicitScorer(name, name, device="cpu").score(candidates(WORDS)) == [0.0] * 4


def test_an_adapter_is_the_policy(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = save_tiny(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tiny_tokenizer().save_pretrained(tmp_path / "merged")
    given = candidates(WORDS)
    one, other = (
        torch.tensor(ImplicitScorer(tmp_path / name, base, device="cpu").score(given))
        for name in ("adapter", "merged")
    )
    assert one.abs().min() > 1e-3
    torch.testing.assert_close(one, other)
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match=r"`implicit`.*no adapter_model\.safetensors"):
        ImplicitScorer(tmp_path / "adapter", base, device="cpu")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    name = save_tiny(tmp_path / "model")
    scorer = ImplicitScorer(name, name, device="cpu")
    with pytest.raises(UnscoredError, match="rows:1") as caught:
        scorer.score(candidates(["a", "b" * 200]))
    assert caught.value.found[0] == 0.0


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    policy, reference = (save_tiny(tmp_path / name) for name in "ab")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(reference)
    with pytest.raises(InputError, match="`implicit_ref`.*another tokenizer"):
        ImplicitScorer(policy, reference, device="cpu")


@pytest.mark.parametrize("beta", [0.0, -1.0, float("inf")])
def test_beta_is_positive(tmp_path: Path, beta: float) -> None:
    with pytest.raises(InputError, match="`implicit_beta`"):
        ImplicitScorer("a", "b", beta=beta)
