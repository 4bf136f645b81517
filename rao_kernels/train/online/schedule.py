"""Which prompts a round has, and in which order its steps take them; all follows from the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy

from .config import OnlineConfig

# What a random order is for; the orders of two purposes are independent.
_PROMPTS, _PASSES, _SAMPLES = range(3)


@dataclass(frozen=True)
class Schedule:
    """The order of prompts of a run.

    prompts: in the data. round_size: prompts of a round. batch: prompts of a rank's micro-batch.
    """

    prompts: int
    round_size: int
    batch: int
    ranks: int
    inner_epochs: int
    steps_per_round: int
    seed: int
    shuffled: bool

    @classmethod
    def of(cls, args: OnlineConfig, prompts: int) -> Schedule:
        return cls(
            prompts=prompts,
            round_size=args.round_size,
            batch=args.per_device_train_batch_size,
            ranks=int(args.world_size),
            inner_epochs=args.inner_epochs,
            steps_per_round=args.steps_per_round,
            seed=args.seed if args.data_seed is None else args.data_seed,
            shuffled=args.train_sampling_strategy != "sequential",
        )

    def total_steps(self, args: OnlineConfig) -> int:
        """Return the optimizer steps of a run with these settings."""
        if args.max_steps > 0:
            return args.max_steps
        rounds = args.rounds
        if rounds is None:
            rounds = math.ceil(args.num_train_epochs * self.prompts / self.round_size)
        return rounds * self.steps_per_round

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a round, on each rank."""
        return self.inner_epochs * self.round_size // (self.batch * self.ranks)

    def prompts_of(self, number: int) -> list[int]:
        """Return the positions in the data of a round's prompts: the next of the passes over it."""
        first = number * self.round_size
        orders: dict[int, list[int]] = {}
        found = []
        for place in range(first, first + self.round_size):
            pass_number, position = divmod(place, self.prompts)
            if pass_number not in orders:
                orders[pass_number] = self._order(self.prompts, _PROMPTS, pass_number)
            found.append(orders[pass_number][position])
        return found

    def share(self, rank: int) -> range:
        """Return the prompts of a round, by position in it, that a rank samples responses to."""
        edges = [rank * self.round_size // self.ranks for rank in (rank, rank + 1)]
        return range(*edges)

    def batches_of(self, number: int, rank: int) -> list[list[int]]:
        """Return a rank's micro-batches of a round: positions among the round's prompts."""
        whole = self.batch * self.ranks
        batches = []
        for inner in range(self.inner_epochs):
            order = self._order(self.round_size, _PASSES, number, inner)
            for start in range(0, self.round_size, whole):
                first = start + rank * self.batch
                batches.append(order[first : first + self.batch])
        return batches

    def sampling_seed(self, number: int, rank: int) -> int:
        """Return the seed of the responses that a rank samples in a round."""
        return int(self._sequence(_SAMPLES, number, rank).generate_state(1)[0])

    def _order(self, size: int, *purpose: int) -> list[int]:
        if not self.shuffled:
            return list(range(size))
        order: list[int] = (
            numpy.random.default_rng(self._sequence(*purpose)).permutation(size).tolist()
        )
        return order

    def _sequence(self, *purpose: int) -> numpy.random.SeedSequence:
        return numpy.random.SeedSequence([self.seed % 2**32, *purpose])
