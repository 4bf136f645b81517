"""Rewards of reward models: a classifier with one output on the last token."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import DataError, InputError
from ..refcache import model_fingerprint
from .encode import encode, right_padded, score_once
from .head import use_fp32_head
from .interface import Candidate, Scorer, attempt, checked
from .loading import Dtype, is_adapter, load_model, load_tokenizer, longest_input, ready

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RewardModelScorer:
    """Scores with a model of `AutoModelForSequenceClassification` with one output.

    Prompt and response are written with the reward model's own chat template; plain text without
    one. The head is computed in fp32 whatever the dtype of the other weights.

    Args:
        model: a name, a folder (of a model or an adapter), or a model, changed in place.
        tokenizer: None: the one in the model's folder.
        dtype: of the weights that are loaded; "auto": as they were saved.
        device: None: a GPU if there is one.
        batch_size: most responses of one forward pass; those of similar length are taken together.

    Raises:
        InputError: the model has another head than stated, or none that was trained.
    """

    def __init__(
        self,
        model: str | PathLike[str] | nn.Module,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        dtype: Dtype = "auto",
        device: str | torch.device | None = None,
        batch_size: int = 16,
    ) -> None:
        missing: list[str] = []
        if isinstance(model, nn.Module):
            self.name = str(getattr(model.config, "_name_or_path", ""))
        else:
            self.name = fspath(model)
            tokenizer = tokenizer or load_tokenizer(model, "reward_model")
            model, missing = load_model("SequenceClassification", model, dtype, "reward_model")
            if is_adapter(self.name):
                _take_padding(model, tokenizer)
        if tokenizer is None:
            raise InputError("tokenizer", "the tokenizer of the model that is given", None)
        _check_head(model, tokenizer, self.name, missing)
        self.tokenizer, self.batch_size = tokenizer, batch_size
        use_fp32_head(model)
        frozen: Any = ready(model, device)
        self.model, self._pad = frozen, frozen.config.get_text_config().pad_token_id
        self._weights = model_fingerprint(frozen)

    def describe(self) -> dict[str, Any]:
        """Return name, dtype and the SHA-256 of the weights."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {
            "kind": "reward_model",
            "model": self.name,
            "weights": self._weights,
            "dtype": dtype,
        }

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the model's output for each candidate."""
        encoded = [self._encode(candidate) for candidate in candidates]
        return checked(candidates, score_once(encoded, self.batch_size, len, self._forward))

    def _encode(self, candidate: Candidate) -> tuple[int, ...] | DataError:
        where, tools = candidate.where, candidate.columns.get("tools")
        try:
            ids = encode(self.tokenizer, candidate.prompt, candidate.response, where, tools)
        except DataError as error:
            return error
        limit = longest_input(self.model)
        if len(ids) > limit:
            return DataError(where, f"{len(ids)} tokens; the reward model was made for {limit:g}")
        return tuple(ids) if ids else DataError(where, "it has no token for the reward model")

    @torch.no_grad()
    def _forward(self, sequences: list[tuple[int, ...]]) -> list[float]:
        # The head takes the last token that is not padding. A model without a padding token gets
        # one with which no sequence ends.
        pad = self._pad
        if pad is None:
            last = {sequence[-1] for sequence in sequences}
            pad = next(token for token in range(len(last) + 1) if token not in last)
            self.model.config.get_text_config().pad_token_id = pad
        ids, mask = right_padded(sequences, pad)
        device = self.model.device
        output = self.model(input_ids=ids.to(device), attention_mask=mask.to(device))
        rewards: list[float] = output.logits[:, 0].tolist()
        return rewards


class RewardEnsemble:
    """Scores with several sources: a response's reward is the mean of theirs."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        if len(scorers) < 2:
            raise InputError("scorers", "at least two", len(scorers))
        self.scorers = list(scorers)

    def describe(self) -> dict[str, Any]:
        """Return what describes each member."""
        return {"kind": "ensemble", "members": [scorer.describe() for scorer in self.scorers]}

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the mean over the members for each candidate."""
        members = [attempt(scorer, candidates) for scorer in self.scorers]
        return checked(candidates, [mean_of(column) for column in zip(*members, strict=True)])


def mean_of(rewards: Sequence[float | DataError]) -> float | DataError:
    """Return the mean of the members' rewards, or the first member's error."""
    errors = [one for one in rewards if isinstance(one, DataError)]
    if errors:
        return errors[0]
    return sum(one for one in rewards if not isinstance(one, DataError)) / len(rewards)


def _take_padding(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the head look for the token that training padded with.

    An adapter's folder holds no config that names it, and that of the base model names another one
    or none.
    """
    if tokenizer.pad_token_id is not None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _check_head(
    model: Any, tokenizer: PreTrainedTokenizerBase, name: str, missing: Sequence[str]
) -> None:
    what = repr(name) if name else type(model).__name__
    if missing:
        raise InputError(
            "reward_model",
            "a trained reward model",
            f"{what}, whose checkpoint lacks {', '.join(missing[:3])}",
            "A language model has no such head: train one with `rao-kernels reward-model`.",
        )
    if getattr(model.config, "num_labels", None) != 1:
        got = f"{what} with {getattr(model.config, 'num_labels', 'no')} outputs"
        raise InputError("reward_model", "a model with one output", got)
    if not hasattr(model, "score") and not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "reward_model",
            "a model with a head on its last token, or with a chat template",
            f"{what}, a {type(model).__name__} that reads prompt and response in a way of its own",
            "Call it in a rule: --rule package.module:function.",
        )
