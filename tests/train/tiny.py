"""A tokenizer, a model and data small enough to train in a test, all made here."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .. import seeds

LETTERS = "abcdefghijklmnopqrstuvwxyz .?\n"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'][0] + '>' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)


def tiny_tokenizer(*, chat: bool = False, merges: bool = False) -> PreTrainedTokenizerFast:
    """One token per letter (with `merges`, "ab" is one token too)."""
    special = ["<pad>", "<s>", "</s>", "<u>", "<a>"]
    vocab = {token: index for index, token in enumerate([*special, *LETTERS, "ab"])}
    model = models.BPE(vocab=vocab, merges=[("a", "b")] if merges else [])
    tokenizer = Tokenizer(model)
    if not merges:
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<u>", "<a>"],
    )
    fast.chat_template = CHAT_TEMPLATE if chat else None
    return fast


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    seeds.seed_torch(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to(dtype)


def tiny_rows(count: int, *, responses: tuple[int, ...] = (2, 3, 1)) -> list[dict[str, object]]:
    """Rows with a varying number of responses and of letters; deterministic."""
    rows: list[dict[str, object]] = []
    for i in range(count):
        k = responses[i % len(responses)]
        word = "".join(LETTERS[(i * 7 + j * 3) % 26] for j in range(2 + i % 5))
        answers = [word[::-1] + LETTERS[(i + j) % 26] * (1 + (i + 2 * j) % 4) for j in range(k)]
        rewards = [((i * 5 + j * 3) % 7) / 7.0 for j in range(k)]
        rows.append({"prompt": f"say {word}", "responses": answers, "rewards": rewards})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_tiny(folder: Path, seed: int = 0, *, chat: bool = False) -> Path:
    """A model folder as `from_pretrained` takes it."""
    tiny_model(seed).save_pretrained(folder)
    tiny_tokenizer(chat=chat).save_pretrained(folder)
    return folder
