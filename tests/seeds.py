"""Where the tests' random numbers come from; `pytest --seed N` gives every test other ones."""

from __future__ import annotations

import os

import numpy
import torch

VARIABLE = "RAO_KERNELS_TEST_SEED"  # how the option reaches processes that a test starts
STRIDE = 1000  # so that no test's numbers at one N are another's at the next


def shifted(seed: int = 0) -> int:
    """`seed` itself at N = 0."""
    return seed + STRIDE * int(os.environ.get(VARIABLE, "0"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(shifted(seed))


def numpy_generator(seed: int = 0) -> numpy.random.Generator:
    return numpy.random.default_rng(shifted(seed))


def fixed_generator() -> torch.Generator:
    """The same whatever N: for numbers that the documentation quotes."""
    return torch.Generator().manual_seed(0)


def seed_torch(seed: int = 0) -> None:
    """Seeds the generator that is used where none is given."""
    torch.manual_seed(shifted(seed))
