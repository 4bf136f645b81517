"""Rewards of reward models: the head on the last token of the model's own template."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rao_kernels.errors import DataError, InputError
from rao_kernels.rewards import Candidate, RewardEnsemble, RewardModelScorer, UnscoredError
from rao_kernels.rewards.encode import by_length, encode, score_once
from rao_kernels.train import RewardConfig, RewardTrainer
from tests.train.tiny import save_tiny, tiny_model, tiny_tokenizer

from .models import (
    candidates,
    last_token_rewards,
    save_tiny_reward_model,
    tiny_reward_model,
)

WORDS = ["yes", "a longer answer", "no", "what is that. it is not", "b"]


def templated(text: str, tokenizer: object) -> list[int]:
    words = f"<u>say {text[::-1]}</s>\n<a>{text}</s>\n"
    return tokenizer(words, add_special_tokens=False)["input_ids"]  # type: ignore[operator]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_reward_is_the_head_on_the_last_token(tmp_path: Path, batch_size: int) -> None:
    name = save_tiny_reward_model(tmp_path / "rm")
    scorer = RewardModelScorer(name, device="cpu", batch_size=batch_size)
    tokenizer = tiny_tokenizer(chat=True)
    expected = last_token_rewards(tiny_reward_model(), [templated(w, tokenizer) for w in WORDS])
    found = scorer.score(candidates(WORDS))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_messages_and_texts_are_the_same_conversation(tmp_path: Path) -> None:
    scorer = RewardModelScorer(save_tiny_reward_model(tmp_path / "rm"), device="cpu")
    text = Candidate("what is it", "a cat", "x")
    asked = [{"role": "user", "content": "what is it"}]
    turns = [{"role": "assistant", "content": "a cat"}]
    both = [text, Candidate(asked, "a cat", "x"), Candidate(asked, turns, "x")]
    assert len(set(scorer.score(both))) == 1


def test_plain_text_without_a_template_stands_between_bos_and_eos() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("say hihi", add_special_tokens=False)["input_ids"]
    assert encode(tokenizer, "say hi", "hi", "x") == [1, *ids, 2]
    assert encode(tokenizer, "<s>say hi", "hi</s>", "x") == [1, *ids, 2]


def test_a_model_without_padding_token_reads_the_last_token_too(tmp_path: Path) -> None:
    """Even where that token is the one that a tokenizer would pad with."""
    model = tiny_reward_model()
    model.config.pad_token_id = None
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    scorer = RewardModelScorer(tmp_path / "rm", device="cpu")
    sequences = [encode(tokenizer, f"say {word[::-1]}", word, "x") for word in WORDS]
    assert {ids[-1] for ids in sequences} == {tokenizer.eos_token_id}
    expected = last_token_rewards(tiny_reward_model(), sequences)
    found = scorer.score(candidates(WORDS))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_an_adapter_is_scored_at_the_token_that_it_was_trained_at(tmp_path: Path) -> None:
    """Training pads with EOS where there is nothing else, and the head takes the token before."""
    peft = pytest.importorskip("peft")
    base = tiny_model()
    base.config.pad_token_id = None
    base.save_pretrained(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"ask {n} ", "chosen": w, "rejected": "no"} for n, w in enumerate(WORDS)]
    run = RewardTrainer(
        str(tmp_path / "base"),
        args=RewardConfig(
            output_dir=str(tmp_path / "rm"),
            max_steps=1,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=rows,
        peft_config=peft.LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"),
    )
    run.train()
    run.save_model()
    batch = run.data_collator([run.train_dataset[number] for number in range(len(rows))])
    with torch.no_grad():
        _, outputs = run.compute_loss(run.model, batch, return_outputs=True)
    scorer = RewardModelScorer(tmp_path / "rm", device="cpu")
    texts = [(str(row["prompt"]), row[name]) for row in rows for name in ("chosen", "rejected")]
    found = scorer.score([Candidate(prompt, text, "x") for prompt, text in texts])
    torch.testing.assert_close(torch.tensor(found), outputs.logits[:, 0])


def test_the_head_is_fp32_under_bf16(tmp_path: Path) -> None:
    name = save_tiny_reward_model(tmp_path / "rm")
    scorer = RewardModelScorer(name, dtype="bfloat16", device="cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scorer.model(torch.tensor([[1, 7]])).logits.dtype == torch.float32
    assert scorer.describe()["dtype"] == "bfloat16"
    rounded = tiny_reward_model().to(torch.bfloat16)
    tokenizer = tiny_tokenizer(chat=True)
    expected = last_token_rewards(rounded, [templated(word, tokenizer) for word in WORDS])
    found = scorer.score(candidates(WORDS))
    # Not rounded to bf16 at the end, which has three digits.
    assert [float(torch.tensor(one).bfloat16()) for one in found] != found
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=2e-2, atol=2e-2)


def test_batches_are_of_similar_length() -> None:
    assert list(by_length([3, 9, 1, 7, 5], 2)) == [[1, 3], [4, 0], [2]]
    assert list(by_length([], 2)) == []


def test_equal_responses_have_equal_rewards_in_any_batch() -> None:
    asked: list[int] = []

    def forward(batch: list[int]) -> list[float]:
        asked.extend(batch)
        return [one + 0.1 * len(batch) for one in batch]

    error = DataError("x", "no")
    found = score_once([3, 1, error, 3, 2, 1, 3], 2, lambda one: one, forward)
    assert found == [3.2, 1.1, error, 3.2, 2.2, 1.1, 3.2]
    assert asked == [3, 2, 1]


def test_a_language_model_is_refused(tmp_path: Path) -> None:
    name = save_tiny(tmp_path / "lm")
    with pytest.raises(InputError, match=r"lacks score\.weight.*reward-model"):
        RewardModelScorer(name, device="cpu")


def test_several_outputs_are_refused(tmp_path: Path) -> None:
    model = tiny_reward_model()
    model.config.num_labels = 3
    AutoModelForSequenceClassification.from_config(model.config).save_pretrained(tmp_path / "rm")
    tiny_tokenizer().save_pretrained(tmp_path / "rm")
    with pytest.raises(InputError, match="one output.*3 outputs"):
        RewardModelScorer(tmp_path / "rm", device="cpu")


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`reward_model`") as caught:
        RewardModelScorer(tmp_path / "none", device="cpu")
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_named_and_the_others_are_scored(tmp_path: Path) -> None:
    scorer = RewardModelScorer(save_tiny_reward_model(tmp_path / "rm"), device="cpu")
    given = candidates(["yes", "a" * 200, "no"])
    with pytest.raises(UnscoredError, match="rows:1: .* tokens; .* made for 128") as caught:
        scorer.score(given)
    good = scorer.score([given[0], given[2]])
    torch.testing.assert_close(
        torch.tensor([caught.value.found[0], caught.value.found[2]]), torch.tensor(good)
    )


def test_rewards_that_are_not_finite_are_refused() -> None:
    model = tiny_reward_model()
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    scorer = RewardModelScorer(model, tiny_tokenizer(chat=True), device="cpu")
    with pytest.raises(UnscoredError, match="rows:0: its reward is nan"):
        scorer.score(candidates(WORDS))


def test_an_ensemble_gives_the_mean(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(chat=True)
    members = [RewardModelScorer(tiny_reward_model(n), tokenizer, device="cpu") for n in range(3)]
    ensemble = RewardEnsemble(members)
    given = candidates(WORDS)
    single = torch.tensor([member.score(given) for member in members])
    assert single.std(0).min() > 1e-3
    torch.testing.assert_close(torch.tensor(ensemble.score(given)), single.mean(0))
    assert [one["weights"] for one in ensemble.describe()["members"]] == [
        member.describe()["weights"] for member in members
    ]
    bad = [*given, replace(given[0], response="a" * 200, where="rows:long")]
    with pytest.raises(UnscoredError, match="rows:long") as caught:
        ensemble.score(bad)
    torch.testing.assert_close(torch.tensor(caught.value.found[:-1]), single.mean(0))


def test_other_weights_are_another_scorer() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    one, other = (RewardModelScorer(tiny_reward_model(n), tokenizer, device="cpu") for n in (0, 1))
    assert one.describe() != other.describe()
