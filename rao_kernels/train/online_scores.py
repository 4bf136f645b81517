"""Passes over a round's responses without gradient: log-probs of policy and reference, values.

Legend: P prompts of a batch, S sequences (their responses), T tokens of the longest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data import Collator, Example, TokenizedRow
from ..errors import InputError
from ..fused import Scoring
from ..refcache import reference_mode, write_atomic
from ..sequence import SequenceBatch
from . import checkpoints
from .online_config import OnlineConfig
from .online_rollouts import FOLDER, Lists, Rollout

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Scores:
    """What a pass found of one prompt: values per token of each response, in nats.

    prompt_logp: of the prompt after t0; 0 where prompts are not scored. values, entropy: None where
    they were not asked for.
    """

    prompt_logp: float
    token_logps: Lists
    values: Lists | None
    entropy: float | None


@dataclass(frozen=True)
class Pass:
    """How sequences are scored.

    size: prompts at once. scoring: whether prompts are scored too.
    """

    collator: Collator
    accelerator: Accelerator
    args: OnlineConfig
    scoring: Scoring

    @property
    def temperature(self) -> float:
        return self.args.temperature if self.args.at_temperature else 1.0

    def run(
        self, model: nn.Module, rollouts: Sequence[Rollout], stats: tuple[str, ...] = ()
    ) -> list[Scores]:
        """Score every rollout; the model is in evaluation mode and without gradients.

        stats: "entropy" and "values", where they are wanted.
        """
        step, found = self.args.per_device_eval_batch_size, []
        for start in range(0, len(rollouts), step):
            found += self._batch(model, rollouts[start : start + step], stats)
        return found

    def _batch(
        self, model: nn.Module, rollouts: Sequence[Rollout], stats: tuple[str, ...]
    ) -> list[Scores]:
        device = next(model.parameters()).device
        batch = self.collator([Example(_bare_row(one), None) for one in rollouts])
        tensors = {name: value.to(device) for name, value in batch.items()}
        sequences: SequenceBatch = tensors.pop("sequences")
        with self.accelerator.autocast():
            output = model(
                **tensors,
                **self.scoring.head_inputs(sequences),
                logp_stats=stats,
                logp_temperature=self.temperature,
                engine_options=self.args.engine_options(),
            )
        logps = output.token_logps.reshape(-1)
        prompts = torch.zeros(sequences.num_sequences, dtype=torch.float64, device=device)
        if self.scoring.prompts != "skipped":
            prompts = sequences.prompt_sums(logps[sequences.prompt_rows])
        tokens = _per_sequence(logps, sequences)
        named = {name: _per_sequence(getattr(output, name), sequences) for name in stats}
        groups, first, scores = sequences.groups.tolist(), prompts.tolist(), []
        for number in range(len(rollouts)):
            own = [s for s, group in enumerate(groups) if group == number]
            values = [named["values"][s] for s in own] if "values" in stats else None
            entropy = _mean([named["entropy"][s] for s in own]) if "entropy" in stats else None
            scores.append(Scores(first[own[0]], [tokens[s] for s in own], values, entropy))
        return scores


class RoundReference:
    """The reference of each round: a model given, the model at the start, or at a later round.

    Of the model in training the weights are kept, and put in their place while the reference is
    asked. Those of a later round are kept in the folder of the rounds too, to resume from.

    given: the reference; None: the model in training.
    """

    def __init__(self, model: nn.Module, given: nn.Module | None, args: OnlineConfig) -> None:
        self.every = args.refresh_reference_every
        if given is not None and self.every:
            expected = "None: the reference becomes the policy every so many rounds"
            raise InputError("ref_model", expected, "a model", "Or refresh_reference_every=0.")
        self.model, self.given, self.args = model, given, args
        self._round: int | None = None
        self._weights: dict[str, Tensor] = {}
        self._under_adapter = hasattr(model, "peft_config") and not self.every
        if given is None and not self.every and not self._under_adapter:
            self._weights = _copy_of(model)

    @property
    def is_policy(self) -> bool:
        """Whether the reference of a round is the policy that samples in it."""
        return self.every == 1

    def begin(self, number: int) -> None:
        """Keep the policy's weights if it becomes the reference in round `number`."""
        if self.every < 2:
            return
        start = number - number % self.every
        if start == number:
            self._round, self._weights = number, _copy_of(self.model)
            if self.args.should_save:
                self._write(number)
        elif self._round != start:
            self._round, self._weights = start, self._read(start)

    def active(self) -> AbstractContextManager[nn.Module]:
        """Return a context that gives the reference, in evaluation mode and without gradients."""
        if self.given is not None or self._under_adapter:
            return _frozen(self.model if self.given is None else self.given)
        return self._swapped()

    @contextlib.contextmanager
    def _swapped(self) -> Iterator[nn.Module]:
        own = {name: parameter.data for name, parameter in _trained(self.model).items()}
        training = self.model.training
        self.model.eval()
        try:
            _put(self.model, self._weights)
            with torch.no_grad():
                yield self.model
        finally:
            _put(self.model, own)
            self.model.train(training)

    def _path(self, number: int) -> Path:
        return Path(str(self.args.output_dir)) / FOLDER / f"reference-{number:05d}.safetensors"

    def _write(self, number: int) -> None:
        """Write the reference that begins in a round; remove those that no checkpoint needs."""
        from safetensors.torch import save

        path = self._path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.cpu().contiguous() for name, tensor in self._weights.items()}
        write_atomic(path, save(weights))
        steps = self.args.steps_per_round
        saved = checkpoints.all_checkpoints(Path(str(self.args.output_dir)))
        rounds = [int(one.name.split("-")[1]) // steps for one in saved]
        needed = {self._path(one - one % self.every) for one in (*rounds, number)}
        for old in path.parent.glob("reference-*.safetensors"):
            if old not in needed:
                old.unlink()

    def _read(self, number: int) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        path = self._path(number)
        if not path.is_file():
            expected = f"the reference of round {number}, {path}"
            raise InputError("resume_from_checkpoint", expected, "no such file")
        found = load_file(path)
        return {name: found[name].to(own.device) for name, own in _trained(self.model).items()}


@contextlib.contextmanager
def policy_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model in evaluation mode without gradients, with its adapter."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.train(training)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[nn.Module]:
    with reference_mode(model):
        yield model


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def _copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in _trained(model).items()}


def _put(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in _trained(model).items():
        parameter.data = weights[name]


def _bare_row(rollout: Rollout) -> TokenizedRow:
    responses = [torch.tensor(ids, dtype=torch.int32) for ids in rollout.sequences()]
    prompt = torch.tensor(rollout.prompt_ids, dtype=torch.int32)
    return TokenizedRow(prompt, responses, None, None, rollout.where)


def _per_sequence(values: Tensor, sequences: SequenceBatch) -> Lists:
    """Return the values of the positions that predict each sequence's response tokens."""
    rows = values.reshape(-1)[sequences.response_rows].cpu()
    return [part.tolist() for part in rows.split(sequences.lengths.tolist())]


def _mean(parts: Any) -> float:
    values = [value for part in parts for value in part]
    return sum(values) / max(len(values), 1)
