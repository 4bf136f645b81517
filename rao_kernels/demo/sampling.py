"""Batched sampling on a CPU: a prompt is read once for all its answers, and an answer that has
ended leaves the batch. Legend: P prompts, B unfinished answers, V vocabulary size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


@dataclass(frozen=True)
class Answer:
    """An answer. finished: False if it was cut at `SamplingOptions.max_tokens`."""

    text: str
    finished: bool


@dataclass(frozen=True)
class SamplingOptions:
    """Settings of `sample_answers`. answers: per prompt. max_tokens: of an answer."""

    answers: int = 4
    max_tokens: int = 32
    temperature: float = 0.5
    prompts_at_once: int = 16


@torch.inference_mode()
def sample_answers(
    folder: Path, prompts: Sequence[str], options: SamplingOptions, *, seed: int, label: str
) -> list[list[Answer]]:
    """Sample `options.answers` answers to every prompt from the model in `folder`, in bf16."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    # Plain attention: at one query per answer it is twice as fast as the fused one on a CPU.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager"
    )
    generator = torch.Generator().manual_seed(seed)
    answers: list[list[Answer]] = []
    with tqdm(total=len(prompts), desc=label, unit="prompt") as bar:
        for start in range(0, len(prompts), options.prompts_at_once):
            part = prompts[start : start + options.prompts_at_once]
            ids = _sample(model, tokenizer, part, options, generator)
            flat = [_decode(one, tokenizer) for one in ids]
            count = options.answers
            answers += [flat[i : i + count] for i in range(0, len(flat), count)]
            bar.update(len(part))
    return answers


def _decode(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return Answer(str(text), ids[-1] == tokenizer.eos_token_id)


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    options: SamplingOptions,
    generator: torch.Generator,
) -> list[list[int]]:
    """Return token ids of ``P * answers`` answers, a prompt's answers together."""
    mask, logits, cache = _read_prompts(model, tokenizer, prompts, options.answers)
    rows = torch.arange(len(mask))
    ids: list[list[int]] = [[] for _ in rows]
    for step in range(options.max_tokens):
        chosen = _draw(logits, options.temperature, generator)
        for row, token in zip(rows.tolist(), chosen.tolist(), strict=True):
            ids[row].append(token)
        alive = (chosen != tokenizer.eos_token_id).nonzero()[:, 0]
        if step + 1 == options.max_tokens or len(alive) == 0:
            break
        if len(alive) < len(rows):
            cache.batch_select_indices(alive)
            rows, chosen, mask = rows[alive], chosen[alive], mask[alive]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits = model(
            chosen[:, None],
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
        ).logits[:, -1]
    return ids


def _read_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: int,
) -> tuple[Tensor, Tensor, Cache]:
    """Return mask ``[B, T]``, logits of the first token ``[B, V]`` and cache; B = P * answers."""
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for chat in chats
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    mask = batch["attention_mask"]
    output = model(
        batch["input_ids"],
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    output.past_key_values.batch_repeat_interleave(answers)
    logits = output.logits[:, -1].repeat_interleave(answers, 0)
    return mask.repeat_interleave(answers, 0), logits, output.past_key_values


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw a token per answer ``[B]`` by inverting the cumulative distribution."""
    summed = (logits.float() / temperature).softmax(-1).cumsum(-1)
    total = summed[:, -1:]
    point = torch.rand(len(total), 1, generator=generator) * total
    return torch.searchsorted(summed, point, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
