"""`rao-kernels sft`: fine-tune a model on prompts with answers; only the answers are learnt.

Records are {"prompt", "completion"}, {"messages"}, {"prompt", "responses"}, or {"text"}, which is
learnt as a whole, in .jsonl, .jsonl.gz or .parquet files. The output folder gets the trained model,
its checkpoints, metrics.jsonl and run.png. The same command again goes on with a run that was
interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from transformers import TrainerCallback

from ..data import Record
from ..errors import DataError
from ..train import RAOConfig, RAOTrainer
from .arguments import DataArguments, ModelArguments, RunArguments, record_sources
from .loss_trainer import UnscoredTrainer, make_loss_trainer
from .options import parse_options
from .shape_options import ShapeArguments
from .training import run_training

Choice = Literal["all", "best"]
# Options of losses that read a reference or rewards.
NOT_OF_SFT = (
    *("beta", "log_z0", "prompt_term", "prefix_length", "loss_kwargs"),
    *("ref_cache_dir", "ref_cache", "ref_per_token"),
)


@dataclass
class ResponseArguments:
    """Which responses are learnt."""

    responses: Choice = field(
        default="all",
        metadata={
            "help": "Learn all responses of a prompt, or only the best: the chosen ones of a pair, "
            "those of the highest reward."
        },
    )


@dataclass
class SFTConfig(RAOConfig):
    """Settings of `rao-kernels sft`: those of `RAOConfig`, with defaults for fine-tuning."""

    loss: Literal["sft", "dft"] = field(
        default="sft",
        metadata={
            "help": "'sft': the negative log-likelihood of each token; 'dft': the same weighted by "
            "the token's probability (Dynamic Fine-Tuning)."
        },
    )
    learning_rate: float = field(
        default=2e-5,
        metadata={"help": "Peak learning rate. LoRA takes about 10 times that of a full model."},
    )
    num_train_epochs: float = field(
        default=1.0, metadata={"help": "Passes over the training data."}
    )
    token_stats: bool = field(
        default=True, metadata={"help": "Log entropy and mean_token_accuracy of the responses."}
    )


TYPES = [
    *(ModelArguments, DataArguments, ShapeArguments),
    *(ResponseArguments, RunArguments, SFTConfig),
]


def run(argv: Sequence[str]) -> None:
    """Parse the options, train, and print a summary."""
    model, data, shapes, chosen, how, config = parse_options(
        "rao-kernels sft", TYPES, argv, without=NOT_OF_SFT
    )
    records = record_sources(data, shapes, KeepResponses(chosen.responses))

    def make(callbacks: Sequence[TrainerCallback]) -> RAOTrainer:
        return make_loss_trainer(
            model,
            data,
            config,
            records,
            callbacks=callbacks,
            trainer_class=UnscoredTrainer if how.dry_run else RAOTrainer,
        )

    run_training("sft", config, make, argv=argv, dry_run=how.dry_run)


@dataclass(frozen=True)
class KeepResponses:
    """Leaves a record the responses to learn, without rewards and marks."""

    which: Choice

    @property
    def name(self) -> str:
        return f"{self.which} responses"

    def __call__(self, record: Record) -> Record:
        """Return the changed record.

        Raises:
            DataError: "all" would learn rejected responses, or "best" has nothing to choose by.
        """
        return _all_of(record) if self.which == "all" else _best_of(record)


def _all_of(record: Record) -> Record:
    if record.preferred is not None and not all(record.preferred):
        problem = "has a rejected response, which would be learnt"
        raise DataError(record.where, problem, "Pass --responses best to learn the chosen one.")
    return _with(record, range(len(record.responses)))


def _best_of(record: Record) -> Record:
    marks, rewards = record.preferred, record.rewards
    if marks is None and rewards is not None:
        marks = [reward == max(rewards) for reward in rewards]
    if marks is None and len(record.responses) > 1:
        problem = f"has {len(record.responses)} responses and no rewards to choose the best by"
        raise DataError(
            record.where, problem, "Score it with `rao-kernels annotate`, or learn all responses."
        )
    return _with(record, [i for i in range(len(record.responses)) if marks is None or marks[i]])


def _with(record: Record, kept: Sequence[int]) -> Record:
    sampled = record.sampled
    if sampled is not None:
        logps = sampled.old_logps
        sampled = replace(
            sampled,
            response_ids=[sampled.response_ids[i] for i in kept],
            old_logps=None if logps is None else [logps[i] for i in kept],
        )
    return replace(
        record,
        responses=[record.responses[i] for i in kept],
        sampled=sampled,
        rewards=None,
        preferred=None,
        reward_ensemble=None,
        finished=None if record.finished is None else [record.finished[i] for i in kept],
    )
