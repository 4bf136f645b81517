"""`rao-kernels train`: align a model with a loss of `LOSSES` on preference data.

Records are {"prompt", "responses", "rewards"} or TRL's {"prompt", "chosen", "rejected"}, in .jsonl,
.jsonl.gz or .parquet files. The output folder gets the trained model, its checkpoints,
metrics.jsonl, run.png and the cache of reference log-probs. The same command again goes on with a
run that was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import TrainerCallback

from ..train import RAOConfig, RAOTrainer
from .arguments import (
    DataArguments,
    ModelArguments,
    ReferenceArguments,
    RunArguments,
    record_sources,
)
from .loss_trainer import UnscoredTrainer, make_loss_trainer
from .options import parse_options
from .shape_options import ShapeArguments
from .training import run_training

TYPES = [
    *(ModelArguments, DataArguments, ShapeArguments),
    *(ReferenceArguments, RunArguments, RAOConfig),
]


def run(argv: Sequence[str]) -> None:
    """Parse the options, train, and print a summary."""
    parsed = parse_options("rao-kernels train", TYPES, argv)
    model, data, shapes, reference, how, config = parsed
    records = record_sources(data, shapes)

    def make(callbacks: Sequence[TrainerCallback]) -> RAOTrainer:
        return make_loss_trainer(
            model,
            data,
            config,
            records,
            ref_model=reference.ref_model,
            callbacks=callbacks,
            trainer_class=UnscoredTrainer if how.dry_run else RAOTrainer,
        )

    run_training("train", config, make, argv=argv, dry_run=how.dry_run)
