"""Sample responses to prompts with the policy, reward them, and score them for the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from ...data import Collator, Prompt
from ...errors import DataError
from ...fused import Scoring
from ...generation import Sampler, SamplingOptions
from ...rewards import Candidate, Scorer
from ...rewards.interface import attempt_twice
from ..prepare import logger
from .config import OnlineConfig
from .prompts import PromptRecord
from .rollouts import Rollout
from .scores import Pass, RoundReference, policy_mode

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class RoundSampler:
    """Makes the rollouts of a round on one rank.

    model: the policy, as it is at each call. reference: None where the loss reads none.
    """

    model: nn.Module
    sampler: Sampler
    scorer: Scorer
    reference: RoundReference | None
    collator: Collator
    scoring: Scoring
    accelerator: Accelerator
    args: OnlineConfig

    def options(self, count: int) -> SamplingOptions:
        """Return the options of sampling `count` responses to each prompt."""
        return SamplingOptions(
            count,
            self.args.max_new_tokens,
            self.args.temperature,
            self.args.top_p,
            self.args.top_k,
            self.args.sampling_batch_size,
        )

    def sample(self, prompts: Sequence[PromptRecord], count: int, seed: int) -> list[Rollout]:
        """Sample responses to prompts and reward them, and their gold answers.

        A prompt with a response that gets no reward, also when asked for again, has none.
        """
        ids = [one.ids for one in prompts]
        with self.accelerator.autocast():
            groups = self.sampler.sample(ids, self.options(count), seed=seed)
        candidates = []
        for one, group in zip(prompts, groups, strict=True):
            shared = (one.prompt, one.where, one.columns)
            candidates += [_candidate(*shared, sample.text, sample.finished) for sample in group]
            candidates += [] if one.gold is None else [_candidate(*shared, one.gold, True)]
        scored = iter(attempt_twice(self.scorer, candidates))
        found = []
        for one, group in zip(prompts, groups, strict=True):
            values = [next(scored) for _ in group]
            values += [] if one.gold is None else [next(scored)]
            rewards, unscored = _rewards(values)
            found.append(
                Rollout(
                    prompt=one.prompt,
                    prompt_ids=list(one.ids),
                    responses=[sample.text for sample in group],
                    response_ids=[list(sample.ids) for sample in group],
                    rewards=rewards and rewards[: len(group)],
                    finished=[sample.finished for sample in group],
                    where=one.where,
                    columns=one.columns,
                    gold_ids=one.gold_ids,
                    gold_reward=rewards[-1] if rewards and one.gold is not None else None,
                    unscored=unscored,
                )
            )
        return found

    def score(self, rollouts: list[Rollout]) -> list[Rollout]:
        """Add the log-probs and values that the loss needs."""
        needs = self.args.spec.required_inputs(self.args.hyperparameters())
        scored = Pass(self.collator, self.accelerator, self.args, self.scoring)
        is_policy = self.reference is not None and self.reference.is_policy
        own = reference = None
        if "old_token_logps" in needs or self.args.estimates_advantages or is_policy:
            asked = ("token_values",) if self.args.estimates_advantages else ()
            stats = ("entropy", *asked)
            with policy_mode(self.model):
                own = scored.run(self.model, rollouts, stats)
        if is_policy:
            reference = own
        elif self.reference is not None:
            with self.reference.active() as frozen:
                reference = scored.run(frozen, rollouts)
        for number, rollout in enumerate(rollouts):
            added: dict[str, Any] = {}
            if own is not None:
                added = {
                    "old_token_logps": own[number].token_logps,
                    "old_values": own[number].values,
                    "entropy": own[number].entropy,
                }
            if reference is not None:
                added["ref_token_logps"] = reference[number].token_logps
                added["ref_prompt_logp"] = reference[number].prompt_logp
            rollouts[number] = dataclasses.replace(rollout, **added)
        return rollouts

    def describe(self, number: int) -> dict[str, Any]:
        """Return the columns that say how a round was sampled and rewarded."""
        names = ("temperature", "top_p", "top_k", "max_new_tokens")
        settings = {name: getattr(self.args, name) for name in names}
        # The log-probs are of the temperature of the loss, which may be another than of sampling.
        settings["logp_temperature"] = self.args.sampled_temperature
        generator = {"policy": f"at the start of round {number}", **settings}
        return {"generator": generator, "scorer": self.scorer.describe()}


def _rewards(values: Sequence[float | DataError]) -> tuple[list[float] | None, str | None]:
    """Return the rewards of a prompt's responses, or None and why one of them has none."""
    for one in values:
        if isinstance(one, DataError):
            logger.warning("%s Its prompt is left out of the round.", one)
            return None, str(one).removeprefix(f"{one.where}: ").rstrip(".")
    return [one for one in values if not isinstance(one, DataError)], None


def _candidate(
    prompt: Prompt, where: str, columns: dict[str, Any], text: str, finished: bool
) -> Candidate:
    return Candidate(prompt, text, where, columns, finished)
