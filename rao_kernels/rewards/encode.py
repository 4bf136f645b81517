"""Token ids of a prompt with its response, as a reward model reads them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..data import Message, Prompt, Response
from ..data.messages import one_line
from ..errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item", bound=Hashable)


def conversation(prompt: Prompt, response: Response) -> list[Message]:
    """Return prompt and response as messages; a text prompt is a user's."""
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if isinstance(response, str):
        return [*asked, {"role": "assistant", "content": response}]
    return [*asked, *response]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    response: Response,
    where: str,
    tools: list[dict[str, Any]] | None = None,
) -> list[int]:
    """Encode a conversation to its end: with the tokenizer's chat template, else as plain text.

    The template's text is taken whole, with what it writes after the last turn, since reward models
    are trained and called that way. Plain text is prompt + response between BOS and EOS, each once,
    if the tokenizer has them.

    Args:
        tokenizer: the reward model's.
        prompt, response: texts or messages; messages need a chat template.
        where: names the record in errors.
        tools: descriptions of functions, for the template.

    Raises:
        DataError: the template or the tokenizer cannot take it.
    """
    try:
        if getattr(tokenizer, "chat_template", None):
            text = tokenizer.apply_chat_template(
                conversation(prompt, response),
                tools=tools,  # type: ignore[arg-type]
                tokenize=False,
            )
            return _ids(tokenizer, str(text))
        if not (isinstance(prompt, str) and isinstance(response, str)):
            fix = "Give the prompt as a text, or take a reward model with a chat template."
            raise DataError(where, "a chat prompt, but the tokenizer has no chat template", fix)
        if tools is not None:
            fix = "Take a reward model with a chat template, or remove the column."
            raise DataError(where, "`tools`, which plain text has no place for", fix)
        return _between_bos_and_eos(tokenizer, _ids(tokenizer, f"{prompt}{response}"))
    except DataError:
        raise
    except Exception as error:  # templates and tokenizers raise errors of any class
        problem = f"the tokenizer cannot take it ({type(error).__name__}: {one_line(error)})"
        raise DataError(where, problem) from error


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _between_bos_and_eos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    start = [] if bos is None or ids[:1] == [bos] else [bos]
    end = [] if eos is None or ids[-1:] == [eos] else [eos]
    return [*start, *ids, *end]


def score_once(
    items: Sequence[Item | DataError],
    batch_size: int,
    length: Callable[[Item], int],
    forward: Callable[[list[Item]], list[float]],
) -> list[float | DataError]:
    """Score each distinct item once, in batches of similar length; errors stay where they are.

    The value of an item may differ in the last digit from batch to batch. So equal responses get
    equal rewards.
    """
    distinct = list(dict.fromkeys(one for one in items if not isinstance(one, DataError)))
    values: dict[Item, float] = {}
    for batch in by_length([length(one) for one in distinct], batch_size):
        members = [distinct[number] for number in batch]
        values |= zip(members, forward(members), strict=True)
    return [one if isinstance(one, DataError) else values[one] for one in items]


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the positions in batches of similar length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def right_padded(sequences: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, both ``[sequences, longest]`` int64."""
    shape = (len(sequences), max(map(len, sequences)))
    ids, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.int64)
    for number, sequence in enumerate(sequences):
        ids[number, : len(sequence)] = torch.tensor(sequence)
        mask[number, : len(sequence)] = 1
    return ids, mask
