"""The models that judge: one on this machine, or one behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike, fspath
from typing import Any

import torch

from ..data import Message
from ..data.messages import one_line, show
from ..errors import InputError, MissingDependencyError
from ..refcache import model_fingerprint
from .judge import Unanswered
from .loading import Dtype, load_model, load_tokenizer, ready

# Statuses that say something of the text that was sent: not valid, too large, not taken.
_OF_ONE_TEXT = (400, 413, 422)


class LocalJudge:
    """A causal language model with a chat template that answers greedily, by transformers.

    Args:
        model: a name or a folder.
        dtype: of the weights; "auto": as they were saved.
        device: None: a GPU if there is one.
        batch_size: most answers that are written at once.
        max_new_tokens: most tokens of an answer; one that is cut there gives no score.

    Raises:
        InputError: there is no such model, it has no chat template, or `max_new_tokens` is below 1.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        dtype: Dtype = "auto",
        device: str | torch.device | None = None,
        batch_size: int = 16,
        max_new_tokens: int = 512,
    ) -> None:
        if max_new_tokens < 1:
            raise InputError("judge_max_new_tokens", "at least 1", max_new_tokens)
        self.name, self.batch_size, self.max_new_tokens = fspath(model), batch_size, max_new_tokens
        self.tokenizer = load_tokenizer(model, "judge")
        if not self.tokenizer.chat_template:
            raise InputError("judge", "a model with a chat template", f"{self.name!r} without one")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "left"
        self.model: Any = ready(load_model("CausalLM", model, dtype, "judge")[0], device)
        self._weights = model_fingerprint(self.model)

    def describe(self) -> dict[str, Any]:
        """Return name, dtype and the SHA-256 of the weights."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"model": self.name, "weights": self._weights, "dtype": dtype}

    def answer(self, chats: Sequence[list[Message]]) -> list[str | Unanswered]:
        """Return the answer to each conversation.

        There is none to one that does not fit into the model's positions together with an answer,
        nor one that was cut.
        """
        asked = [self._encoded(chat) for chat in chats]
        found: list[Any] = [self._misfit(tokens) for tokens in asked]
        fitting = [n for n, misfit in enumerate(found) if misfit is None]
        for start in range(0, len(fitting), self.batch_size):
            places = fitting[start : start + self.batch_size]
            answers = self._generate([asked[n] for n in places])
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
        return found

    def _encoded(self, chat: list[Message]) -> list[int]:
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self.tokenizer(str(text), add_special_tokens=False)["input_ids"]
        return ids

    def _misfit(self, tokens: list[int]) -> Unanswered | None:
        config = self.model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        if limit is None or len(tokens) + self.max_new_tokens <= limit:
            return None
        problem = f"the judge has {limit} positions; its question has {len(tokens)} tokens and its "
        problem += f"answer up to {self.max_new_tokens}"
        return Unanswered(problem, "Lower --judge_max_new_tokens (max_new_tokens), or shorten it.")

    @torch.no_grad()
    def _generate(self, asked: Sequence[list[int]]) -> list[str | Unanswered]:
        batch: Any = self.tokenizer.pad({"input_ids": list(asked)}, return_tensors="pt")
        ids, ends = batch["input_ids"].to(self.model.device), self._ends()
        output = self.model.generate(
            input_ids=ids,
            attention_mask=batch["attention_mask"].to(self.model.device),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=sorted(ends) or None,
        )
        found: list[list[int]] = output[:, ids.shape[1] :].tolist()
        return [self._whole(tokens, ends) for tokens in found]

    def _ends(self) -> set[int]:
        """Return the tokens that end an answer."""
        given = self.model.generation_config.eos_token_id
        ends = {given} if isinstance(given, int) else set(given or ())
        own = self.tokenizer.eos_token_id
        return ends if own is None else ends | {own}

    def _whole(self, tokens: list[int], ends: set[int]) -> str | Unanswered:
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        if len(tokens) < self.max_new_tokens or ends & set(tokens):
            return text
        fix = "Raise --judge_max_new_tokens (max_new_tokens), or ask for shorter answers."
        return _cut(text, f"at {self.max_new_tokens} tokens", fix)


class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint, such as vLLM's, asked at temperature 0.

    The key is read from the environment variable OPENAI_API_KEY. Requests that fail by the network,
    or because there were too many, are repeated by the client, with growing pauses.

    Args:
        base_url: of the endpoint, for example ``http://localhost:8000/v1``.
        model: its name there.
        concurrency: most requests that are under way at once.

    Raises:
        InputError: no key is set.
    """

    def __init__(self, base_url: str, model: str, *, concurrency: int = 16) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingDependencyError("openai", "judge") from error
        self.base_url, self.model, self.concurrency = base_url, model, concurrency
        try:
            self._client = openai.OpenAI(base_url=base_url, max_retries=5)
        except openai.OpenAIError as error:
            fix = "Set OPENAI_API_KEY; an endpoint without keys takes any text."
            raise InputError("judge", "a key for the endpoint", one_line(error), fix) from error

    def describe(self) -> dict[str, Any]:
        """Return address and name of the model."""
        return {"endpoint": self.base_url, "model": self.model}

    def answer(self, chats: Sequence[list[Message]]) -> list[str | Unanswered]:
        """Return the answer to each conversation.

        One that the endpoint does not take (it is too long, or filtered) has none, nor one whose
        answer was cut.

        Raises:
            InputError: the endpoint refuses all of them, or cannot be reached.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            waiting = [pool.submit(self._ask, chat) for chat in chats]
            try:
                return [one.result() for one in waiting]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _ask(self, chat: list[Message]) -> str | Unanswered:
        import openai

        messages: Any = chat
        try:
            answer = self._client.chat.completions.create(
                model=self.model, messages=messages, temperature=0.0
            )
        except openai.OpenAIError as error:
            got = f"{type(error).__name__}: {one_line(error)[:300]}"
            if isinstance(error, openai.APIStatusError) and error.status_code in _OF_ONE_TEXT:
                return Unanswered(f"the judge's endpoint refuses it ({got})")
            expected = f"an endpoint that answers at {self.base_url}"
            raise InputError("judge", expected, got) from error
        return _first_choice(answer)


def _first_choice(answer: Any) -> str | Unanswered:
    """Return the text of a response's first choice if it is whole."""
    if not answer.choices:
        return Unanswered("the judge's endpoint gives no answer (no choices)")
    choice = answer.choices[0]
    text, reason = getattr(choice.message, "content", None), choice.finish_reason
    if reason == "length":
        fix = "Raise the endpoint's limit of tokens, or ask for shorter answers."
        return _cut(text or "", "at the endpoint's limit of tokens", fix)
    if text is None or reason == "content_filter":
        return Unanswered(f"the judge's endpoint gives no answer (finish_reason: {reason})")
    return str(text)


def _cut(text: str, where: str, fix: str) -> Unanswered:
    """Say that an answer is not whole: a number in it may not be the score."""
    return Unanswered(f"the judge's answer was cut {where}: ...{show(text[-200:], 200)}", fix)
