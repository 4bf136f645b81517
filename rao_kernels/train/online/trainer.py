"""`OnlineTrainer`: trains with any loss on responses that the model samples as it learns."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ...data import Example, PreferenceDataset, TokenizedRow
from ...errors import InputError
from ...generation import Sampler, TransformersSampler
from ...hf import attach_fused_head
from ...rewards import Scorer
from ..checks import check_rows
from ..guards import RisingLoss
from ..identity import Identity, describe, of_values
from ..model import prepare_reference, value_model_of
from ..output_folder import OutputFolder
from ..prepare import estimate_log_z0, find_prefix_length, make_collator
from ..trainer import RAOTrainer
from .checks import check_online, method_items, needs_reference, settings_read
from .config import OnlineConfig
from .loader import round_loader
from .metrics import describe_round, describe_samples
from .prompts import PromptDataset, PromptRecord, load_prompts
from .rollouts import Rollout, RoundFiles
from .rows import RoundExample, check_scored, examples_of
from .sampling import RoundSampler
from .schedule import Schedule
from .scores import RoundReference

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class OnlineTrainer(RAOTrainer):
    """Trains a causal language model on its own responses, with any loss of `losses.LOSSES`.

    A round samples responses to the next prompts, rewards them, computes what the loss needs of
    them, and trains on them. `docs/online.md` says more.

    Args:
        model: as of `RAOTrainer`.
        ref_model: the reference, given as the model is; None: the model as it is at the start, or
            what `refresh_reference_every` makes it.
        args: the settings; None: the defaults, with output_dir="rao_output".
        scorer: gives the rewards.
        train_dataset, eval_dataset: prompts to sample responses to: a path or a list of paths, an
            iterable of records with the column `prompt`, a `datasets` object or a data frame. Other
            columns reach the scorer; GRAO reads the column `gold`.
        sampler: samples from the model as it is at each call; None: a
            `generation.TransformersSampler`.
        processing_class: the tokenizer; None: the one in the model's folder.
        peft_config: adapter to put on the model.
        callbacks, optimizers: as of `transformers.Trainer`.

    Raises:
        InputError: an argument or a combination of settings cannot work.
        DataError: a prompt is bad.
        NotYetError: the loss cannot be trained online.

    Example:
        >>> args = OnlineConfig(output_dir="out", loss="grpo", rounds=100)
        >>> trainer = OnlineTrainer("DIR_OR_NAME", args=args, scorer=s, train_dataset="p.jsonl")
        >>> trainer.train()
    """

    learns_from_rollouts = True
    args: OnlineConfig

    def __init__(
        self,
        model: str | PathLike[str] | PreTrainedModel | nn.Module,
        ref_model: str | PathLike[str] | nn.Module | None = None,
        args: OnlineConfig | None = None,
        *,
        scorer: Scorer,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        sampler: Sampler | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        self._rewards = scorer
        self._given_sampler = sampler
        super().__init__(
            model,
            ref_model,
            OnlineConfig(output_dir="rao_output") if args is None else args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.logp_temperature = self.args.sampled_temperature
        # The loss of a policy gradient says nothing about progress.
        self.remove_callback(RisingLoss)

    # What is made of the arguments.

    def _load(
        self, train: Any, held_out: Any, args: Any, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Any, Any]:
        check_online(args)
        named = ((train, "training prompts"), (held_out, "evaluation prompts"))
        training, evaluation = (
            None if source is None else load_prompts(source, name, args, tokenizer)
            for source, name in named
        )
        return training, evaluation

    def _prepare(self, ref_model: Any) -> None:
        """Find t0, keep the reference, and take the output folder."""
        model: Any = self.model
        given = None
        if ref_model is not None:
            given = attach_fused_head(prepare_reference(ref_model, self.args.device))
        self._reference: RoundReference | None = None
        if needs_reference(self.args):
            fresh = self._fresh_adapter
            self._reference = RoundReference(model, given, self.args, fresh_adapter=fresh)
        self._files = RoundFiles(Path(str(self.args.output_dir)))
        self._given_hyper = dict(self.hyper)
        self._round = RoundData([], [], "")
        self._first_reward: float | None = None
        self._resumed_sha: str | None = None
        datasets = [one for one in (self.train_dataset, self.eval_dataset) if one]
        rows = [row for one in datasets for row in one.rows]
        if rows:
            self._prefix_length = find_prefix_length(rows, self.args, None)
        collator = make_collator(self.processing_class, self._prefix_length or 1)
        self.data_collator = dataclasses.replace(collator, packing=self.args.packing)
        self._rollouts = RoundSampler(
            model,
            self._given_sampler or TransformersSampler(model, self.processing_class),
            self._rewards,
            self._reference,
            self.data_collator,
            self._scoring,
            self.accelerator,
            self.args,
        )
        if rows:
            self._check_prompts([prompt for one in datasets for prompt in one.prompts], given)
        self._begin_run(self._identity())

    def _check_prompts(self, prompts: Sequence[PromptRecord], given: nn.Module | None) -> None:
        """Raise if a prompt and a response to it are too long for a model that reads them."""
        count = self.args.responses_per_prompt
        self._rollouts.sampler.check([one.ids for one in prompts], self._rollouts.options(count))
        longest = torch.zeros(self.args.max_new_tokens, dtype=torch.int32)
        rows = []
        for one in prompts:
            gold = [torch.tensor(one.gold_ids, dtype=torch.int32)] if one.gold_ids else []
            ids = torch.tensor(one.ids, dtype=torch.int32)
            rows.append(TokenizedRow(ids, [longest, *gold], None, None, one.where))
        readers: list[Any] = [self.model, *([given] if given is not None else [])]
        readers += [value_model_of(self.model) or self.model]
        for model in dict.fromkeys(readers):
            check_rows(rows, model, self.processing_class, self.args.max_length)

    def _begin_run(self, identity: Identity | None) -> None:
        args = self.args if identity is None else self._counted(self.args)
        self._output = OutputFolder(args, identity)

    def _identity(self) -> Identity | None:
        if self.train_dataset is None:
            return None
        reference = None if self._reference is None else self._reference.given
        items: Identity = {
            **method_items(self.args, reference),
            **of_values(self.model, self.args),
            "prefix_length": self._prefix_length,
            "prompts": {"what": "columns", "sha256": self.train_dataset.digest()},
            "rewards": self._rewards.describe(),
        }
        return describe(self, items)

    # Rounds.

    @property
    def schedule(self) -> Schedule:
        """Which prompts a round has, and in which order its steps take them."""
        return Schedule.of(self.args, len(self.train_dataset))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a loader whose every pass is a round."""
        return round_loader(self)

    @property
    def round_examples(self) -> list[RoundExample]:
        """The examples of the current round."""
        return self._round.examples

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """Let transformers count the steps of all rounds; an epoch of it is a round."""
        return super().set_initial_training_values(self._counted(args), dataloader)

    def _counted(self, args: OnlineConfig) -> OnlineConfig:
        """Return the settings with the steps of all rounds as `max_steps`."""
        counted = copy.copy(args)
        counted.max_steps = self.schedule.total_steps(args)
        return counted

    def begin_round(self) -> list[list[int]]:
        """Begin the round of the next step; return the micro-batches of this rank.

        The round is sampled and written, or read if the run was resumed within it.
        """
        schedule = self.schedule
        number, done = divmod(self.state.global_step, schedule.steps_per_round)
        if not done:
            self._sample_round(number, schedule)
        rollouts, sha = self._files.read(number, self._resumed_sha if done else None)
        self._take_round(number, rollouts, sha)
        return schedule.batches_of(number, self.args.process_index)

    def _sample_round(self, number: int, schedule: Schedule) -> None:
        """Sample this rank's share of a round, and write the shares of all ranks to one file."""
        if self._reference is not None:
            self._reference.begin(number)
        rank, chosen = self.args.process_index, schedule.prompts_of(number)
        own = [chosen[position] for position in schedule.share(rank)]
        rollouts = self._sampled(own, schedule.sampling_seed(number, rank))
        if self.args.world_size > 1:
            rollouts = gather_object(rollouts)
        if self.args.should_save:
            self._files.write(number, rollouts, self._rollouts.describe(number))
        self.accelerator.wait_for_everyone()

    def _sampled(self, indices: Sequence[int], seed: int) -> list[Rollout]:
        """Sample responses to these prompts of the data; reward and score them."""
        prompts = [self.train_dataset.prompts[index] for index in indices]
        sampled = self._rollouts.sample(prompts, self.args.responses_per_prompt, seed)
        return self._rollouts.score(sampled)

    def _take_round(self, number: int, rollouts: list[Rollout], sha: str) -> None:
        """Make the round's examples; estimate log_z0 where the reference has sampled the round."""
        examples = examples_of(rollouts, self.args)
        self._round = RoundData(rollouts, examples, sha)
        every = self.args.refresh_reference_every
        if number == 0 or (every and number % every == 0):
            self._fit_log_z0(rollouts, examples)
        weight = torch.ones((), device=self.args.device)
        found = describe_round(rollouts)
        if number == 0:
            self._first_reward = found["reward/mean"]
        metrics = {
            name: torch.tensor(value, device=self.args.device) for name, value in found.items()
        }
        self._meters["train"].update(metrics, weight)

    def _fit_log_z0(self, rollouts: Sequence[Rollout], examples: Sequence[RoundExample]) -> None:
        pairs = zip(rollouts, examples, strict=True)
        rows = PreferenceDataset([own.example.row for one, own in pairs if one.unscored is None])
        self.hyper = estimate_log_z0(self.spec, self._given_hyper, [rows], self.args)

    def trial_examples(self, indices: Sequence[int]) -> list[Example]:
        """Sample responses to these prompts as round 0 does; return those that can be learnt from.

        If there are none, the examples that have the weight 0.
        """
        if self._reference is not None:
            self._reference.begin(0, keep=False)
        rollouts = self._sampled(indices, self.schedule.sampling_seed(0, 0))
        examples = examples_of(rollouts, self.args)
        self._fit_log_z0(rollouts, examples)
        return [one.example for one in examples if one.counted] or [one.example for one in examples]

    def trial_reference(self) -> nn.Module | None:
        return None if self._reference is None else self._reference.given

    def collate(self, examples: Sequence[RoundExample]) -> dict[str, Any]:
        """Collate the examples that count; if there is none, one with the weight 0."""
        counted = [one.example for one in examples if one.counted]
        if counted:
            return self.data_collator(counted)
        batch = self.data_collator([examples[0].example])
        return batch | {"fresh": torch.tensor(False)}

    # Evaluation.

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Sample a response to each held-out prompt, and return the mean of the rewards.

        The seed of the samples is the same in every evaluation.
        """
        held_out = self.eval_dataset if eval_dataset is None else eval_dataset
        if held_out is None:
            raise InputError("eval_dataset", "prompts to evaluate on", None)
        if not isinstance(held_out, PromptDataset):
            named = (held_out, "evaluation prompts", self.args, self.processing_class)
            held_out = load_prompts(*named)
        rank, ranks = self.args.process_index, self.args.world_size
        own = held_out.prompts[rank::ranks]
        seed = Schedule.of(self.args, 1).sampling_seed(0, rank)
        rollouts = self._rollouts.sample(own, 1, seed) if own else []
        if ranks > 1:
            rollouts = gather_object(rollouts)
        check_scored(rollouts)
        found = describe_samples(rollouts)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    # Runs and their checkpoints.

    def before_training(self) -> None:
        """Report nothing: what the loss is trained on is sampled later."""

    def run_state(self) -> dict[str, Any]:
        own = {"round_sha256": self._round.sha256, "first_reward": self._first_reward}
        return {**super().run_state(), **own}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore log_z0, which the round that the reference sampled may have set."""
        self._resumed_sha = state["round_sha256"]
        self._first_reward = state.get("first_reward")
        if isinstance(state.get("log_z0"), float):
            self.hyper = {k: v for k, v in self._given_hyper.items() if "log_z0" not in k}
            self.hyper["log_z0"] = state["log_z0"]

    def facts(self) -> Iterator[tuple[str, str]]:
        hyper = ", ".join(f"{key}={value}" for key, value in self.hyper.items())
        yield "hyperparameters of the loss", hyper or "none"
        if self.train_dataset is not None:
            yield "training data", f"{len(self.train_dataset)} prompts, and responses sampled"
        yield from ((name, str(value)) for name, value in settings_read(self.args).items())

    def data_facts(self) -> Iterator[tuple[str, str]]:
        yield from super().data_facts()
        if text := self._mean_rewards():
            yield "mean reward", text

    def conclude(self) -> str:
        text = self._mean_rewards()
        return f"mean reward: {text}" if text else ""

    def _mean_rewards(self) -> str:
        """Say the mean rewards of the first and the last round; empty before the first one."""
        if self._first_reward is None or not self._round.rollouts:
            return ""
        last = describe_round(self._round.rollouts)["reward/mean"]
        return f"{self._first_reward:.6g} in the first round, {last:.6g} in the last"


@dataclasses.dataclass(frozen=True)
class RoundData:
    """The round that is trained on, and the SHA-256 of its file."""

    rollouts: list[Rollout]
    examples: list[RoundExample]
    sha256: str
