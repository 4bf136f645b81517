"""The loader of an `OnlineTrainer`: each pass over it is a round.

It is not accelerate's, which would fetch the next micro-batch, and begin the next round, before the
step of the last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Dataset

from .rows import RoundExample

if TYPE_CHECKING:
    from .trainer import OnlineTrainer


def round_loader(trainer: OnlineTrainer) -> DataLoader[Any]:
    """Return a loader that begins a round whenever it is iterated, and gives its micro-batches.

    A loader that accelerate makes of it to skip micro-batches begins, and skips within, a round.
    """
    return DataLoader(
        _Positions(trainer),
        batch_sampler=_MicroBatches(trainer),
        collate_fn=trainer.collate,
        pin_memory=trainer.args.dataloader_pin_memory and trainer.args.device.type == "cuda",
    )


class _Positions(Dataset[RoundExample]):
    """The examples of the trainer's current round."""

    def __init__(self, trainer: OnlineTrainer) -> None:
        self.trainer = trainer

    def __len__(self) -> int:
        return self.trainer.args.round_size

    def __getitem__(self, position: int) -> RoundExample:
        return self.trainer.round_examples[position]


class _MicroBatches:
    """Begins a round whenever it is iterated, and yields this rank's micro-batches of it."""

    def __init__(self, trainer: OnlineTrainer) -> None:
        self.trainer = trainer
        self.batch_size = trainer.args.per_device_train_batch_size
        self.drop_last = False

    def __len__(self) -> int:
        return self.trainer.schedule.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.trainer.begin_round()
