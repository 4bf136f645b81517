"""Passes over a round's responses without gradient: log-probs of policy and reference, values.

Legend: P prompts of a batch, S sequences (their responses), T tokens of the longest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ...data import Collator, Example, TokenizedRow
from ...errors import InputError
from ...fused import Scoring
from ...refcache import StartWeights, keep_start, reference_mode, write_atomic
from ...sequence import SequenceBatch
from ...sequence.model_inputs import model_inputs
from .. import checkpoints
from .config import OnlineConfig
from .rollouts import FOLDER, Lists, Rollout

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Scores:
    """What a pass found of one prompt: values per token of each response, in nats.

    prompt_logp: of the prompt after t0; 0 where prompts are not scored. entropy: mean over the
    tokens of the responses, without the gold answer's. values, entropy: None where they were not
    asked for.
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

    def run(
        self, model: nn.Module, rollouts: Sequence[Rollout], stats: tuple[str, ...] = ()
    ) -> list[Scores]:
        """Score every rollout; the model is in evaluation mode and without gradients.

        stats: "entropy" and "token_values", where they are wanted.
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
        sequences: SequenceBatch = tensors["sequences"]
        with self.accelerator.autocast():
            output = model(
                **model_inputs(tensors),
                **self.scoring.head_inputs(sequences),
                logp_stats=stats,
                logp_temperature=self.args.sampled_temperature,
                engine_options=self.args.engine_options(),
            )
        logps = output.token_logps.reshape(-1)
        prompts = torch.zeros(sequences.num_sequences, dtype=torch.float64, device=device)
        if self.scoring.prompts != "skipped":
            prompts = sequences.prompt_sums(logps[sequences.prompt_rows])
        tokens = _per_sequence(logps, sequences)
        named = {name: _per_sequence(getattr(output, name), sequences) for name in stats}
        groups, first, scores = sequences.groups.tolist(), prompts.tolist(), []
        for number, rollout in enumerate(rollouts):
            own = [s for s, group in enumerate(groups) if group == number]
            sampled = own[: len(rollout.responses)]
            values = [named["token_values"][s] for s in own] if "token_values" in stats else None
            entropy = _mean([named["entropy"][s] for s in sampled]) if "entropy" in stats else None
            scores.append(Scores(first[own[0]], [tokens[s] for s in own], values, entropy))
        return scores


class RoundReference:
    """The reference of each round: a model given, the model at the start, or at a later round.

    Of the model in training the weights are kept, and put in their place while the reference is
    asked. Those of a later round are kept in the folder of the rounds too, to resume from.

    given: the reference; None: the model in training. fresh_adapter: the model's adapter was made
    for this run.
    """

    def __init__(
        self,
        model: nn.Module,
        given: nn.Module | None,
        args: OnlineConfig,
        *,
        fresh_adapter: bool,
    ) -> None:
        self.every = args.refresh_reference_every
        if given is not None and self.every:
            expected = "None: the reference becomes the policy every so many rounds"
            raise InputError("ref_model", expected, "a model", "Or refresh_reference_every=0.")
        if given is not None:
            _check_apart(given, model)
        self.model, self.given, self.args = model, given, args
        self._round: int | None = None
        self._start: StartWeights | None = None
        if given is not None:
            self._start = keep_start(given)
        elif not self.every:
            self._start = keep_start(model, added=fresh_adapter)
            if not hasattr(model, "peft_config"):
                self._start = StartWeights(_trained(model))

    @property
    def is_policy(self) -> bool:
        """Whether the reference of a round is the policy that samples in it."""
        return self.every == 1

    def begin(self, number: int, *, keep: bool = True) -> None:
        """Keep the policy's weights if it becomes the reference in round `number`.

        keep: write them to the output folder too, to resume from.
        """
        if self.every < 2:
            return
        start = number - number % self.every
        if start == number:
            weights = _trained(self.model)
            self._round, self._start = number, StartWeights(weights)
            if keep and self.args.should_save:
                self._write(number, weights)
        elif self._round != start:
            self._round, self._start = start, StartWeights(self._read(start))

    @contextlib.contextmanager
    def active(self) -> Iterator[nn.Module]:
        """Give the reference, in evaluation mode and without gradients."""
        model = self.model if self.given is None else self.given
        with reference_mode(model, self._start):
            yield model

    def _path(self, number: int) -> Path:
        return Path(str(self.args.output_dir)) / FOLDER / f"reference-{number:05d}.safetensors"

    def _write(self, number: int, weights: dict[str, Tensor]) -> None:
        """Write the reference that begins in a round; remove those that no checkpoint needs."""
        path = self._path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save({name: one.cpu().contiguous() for name, one in weights.items()}))
        steps = self.args.steps_per_round
        saved = checkpoints.all_checkpoints(Path(str(self.args.output_dir)))
        rounds = [int(one.name.split("-")[1]) // steps for one in saved]
        needed = {self._path(one - one % self.every) for one in (*rounds, number)}
        for old in path.parent.glob("reference-*.safetensors"):
            if old not in needed:
                old.unlink()

    def _read(self, number: int) -> dict[str, Tensor]:
        path = self._path(number)
        if not path.is_file():
            expected = f"the reference of round {number}, {path}"
            raise InputError("resume_from_checkpoint", expected, "no such file")
        return load_file(path)


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


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the trained weights of the policy, without its value head."""
    return {
        name: one.detach().clone()
        for name, one in model.named_parameters()
        if one.requires_grad and "value_head" not in name
    }


def _check_apart(given: nn.Module, model: nn.Module) -> None:
    """Raise if the reference given would change as the model is trained."""
    trained = {id(one) for one in model.parameters() if one.requires_grad}
    if any(id(one) in trained for one in given.parameters()):
        fix = "Without ref_model the reference is the model as it is at the start."
        raise InputError("ref_model", "a model of its own", "weights that are trained", fix)


def _bare_row(rollout: Rollout) -> TokenizedRow:
    responses = [torch.tensor(ids, dtype=torch.int32) for ids in rollout.sequences()]
    prompt = torch.tensor(rollout.prompt_ids, dtype=torch.int32)
    return TokenizedRow(prompt, responses, None, None, rollout.where)


def _per_sequence(values: Tensor, sequences: SequenceBatch) -> Lists:
    """Return the values of the positions that predict each sequence's response tokens."""
    rows = values.reshape(-1)[sequences.response_rows].cpu()
    return [part.tolist() for part in rows.split(sequences.lengths.tolist())]


def _mean(parts: Lists) -> float:
    values = [value for part in parts for value in part]
    return sum(values) / max(len(values), 1)
