"""Implicit rewards: what a policy's log-probs say it was trained to prefer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from ..data import PromptFormat, Record, TokenizeOptions, tokenize_records
from ..errors import DataError, InputError
from ..hf import attach_fused_head
from ..refcache import model_fingerprint, tokenizer_fingerprint
from .encode import right_padded, score_once
from .interface import Candidate, checked
from .loading import Dtype, load_model, load_tokenizer, longest_input, ready

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_IGNORED = -100


@dataclass(frozen=True)
class _Sequence:
    """Token ids of prompt and response, and the token that each position predicts, or -100."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]


class ImplicitScorer:
    """Scores with ``beta (log pi(y|x) - log pi_ref(y|x))``, RAO's Eq. 5 without its log Z(x).

    It orders the responses to one prompt as the policy's own reward does; log Z(x), which is the
    same for all of them, is not known. Prompts and responses are tokenized as in training, if
    `prompt_format` is that of the training.

    Args:
        policy: name or folder of the trained model or adapter.
        reference: the model that it was trained from.
        beta: of that training, in reward per nat.
        prompt_format: of that training: "auto", "chat" or "plain", as of `data.TokenizeOptions`.
        dtype: of the weights; "auto": as they were saved.
        device: None: a GPU if there is one.
        batch_size: most responses of one forward pass.

    Raises:
        InputError: a model is missing, the two have different tokenizers, or these have no chat
            template and `prompt_format` is "chat".
    """

    def __init__(
        self,
        policy: str | PathLike[str],
        reference: str | PathLike[str],
        *,
        beta: float = 0.1,
        prompt_format: PromptFormat = "auto",
        dtype: Dtype = "auto",
        device: str | torch.device | None = None,
        batch_size: int = 16,
    ) -> None:
        if not 0.0 < beta < math.inf:
            raise InputError("implicit_beta", "a finite number above 0", beta)
        self.names, self.beta, self.batch_size = (
            (fspath(policy), fspath(reference)),
            beta,
            batch_size,
        )
        self.prompt_format = prompt_format
        self.tokenizer = load_tokenizer(policy, "implicit")
        _check_format(prompt_format, self.tokenizer)
        _check_same(self.tokenizer, load_tokenizer(reference, "implicit_ref"), self.names)
        given = zip(self.names, ("implicit", "implicit_ref"), strict=True)
        loaded = [
            ready(load_model("CausalLM", name, dtype, flag)[0], device) for name, flag in given
        ]
        self._weights = [model_fingerprint(model) for model in loaded]
        self.models: list[Any] = [attach_fused_head(model) for model in loaded]

    def describe(self) -> dict[str, Any]:
        """Return names, dtype and weights' SHA-256 of both models, beta and the prompt's format."""
        policy, reference = (
            {"model": name, "weights": weights, "dtype": str(model.dtype).removeprefix("torch.")}
            for name, weights, model in zip(self.names, self._weights, self.models, strict=True)
        )
        settings = {"beta": self.beta, "prompt_format": self.prompt_format}
        return {"kind": "implicit", "policy": policy, "reference": reference, **settings}

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the implicit reward of each candidate."""
        rows = [self._tokenize(candidate) for candidate in candidates]
        found = score_once(rows, self.batch_size, lambda row: len(row.ids), self._forward)
        return checked(candidates, found)

    def _tokenize(self, candidate: Candidate) -> _Sequence | DataError:
        limit = min(longest_input(model) for model in self.models)
        longest = int(limit) if limit < math.inf else 2**31 - 1
        options = TokenizeOptions(max_length=longest, prompt_format=self.prompt_format)
        record = Record(
            candidate.prompt,
            [candidate.response],
            None,
            candidate.where,
            tools=candidate.columns.get("tools"),
            finished=[candidate.finished],
        )
        try:
            row = tokenize_records([record], self.tokenizer, options)[0]
        except DataError as error:
            return error
        targets = row.responses[0].long()
        if row.masks is not None:
            targets = targets.masked_fill(~row.masks[0], _IGNORED)
        ids = torch.cat([row.prompt, row.responses[0]]).tolist()
        # Position i predicts token i + 1.
        unscored = [_IGNORED] * (len(row.prompt) - 1)
        return _Sequence(tuple(ids), (*unscored, *targets.tolist(), _IGNORED))

    def _forward(self, rows: list[_Sequence]) -> list[float]:
        policy, reference = (_log_probs(model, rows) for model in self.models)
        rewards: list[float] = (self.beta * (policy - reference)).tolist()
        return rewards


@torch.no_grad()
def _log_probs(model: Any, rows: Sequence[_Sequence]) -> Tensor:
    """Return the log-prob of each row's response, in nats, ``[rows]`` fp64."""
    ids, mask = right_padded([row.ids for row in rows], 0)
    targets, _ = right_padded([row.targets for row in rows], _IGNORED)
    given = {"input_ids": ids, "attention_mask": mask, "logp_targets": targets}
    output = model(**{name: tensor.to(model.device) for name, tensor in given.items()})
    token_logps: Tensor = output.token_logps
    return token_logps.double().sum(1)


def _check_format(prompt_format: str, tokenizer: PreTrainedTokenizerBase) -> None:
    if prompt_format not in get_args(PromptFormat):
        expected = "'auto', 'chat' or 'plain'"
        raise InputError("implicit_prompt_format", expected, repr(prompt_format))
    if prompt_format == "chat" and not tokenizer.chat_template:
        expected = "a policy whose tokenizer has a chat template, for 'chat'"
        raise InputError("implicit_prompt_format", expected, "one without")


def _check_same(
    policy: PreTrainedTokenizerBase, reference: PreTrainedTokenizerBase, names: tuple[str, str]
) -> None:
    if tokenizer_fingerprint(policy) != tokenizer_fingerprint(reference):
        expected = f"the model that {names[0]!r} was trained from, with the same tokenizer"
        raise InputError("implicit_ref", expected, f"{names[1]!r} with another tokenizer")
