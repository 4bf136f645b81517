"""All random numbers of the tests follow the option ``--seed``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from . import seeds
from .cases import make

OWN = ("seeds.py", Path(__file__).name)
SEEDING = re.compile(r"manual_seed|\bset_seed\(\d|\bRandom\(\d|default_rng|np\.random|random\.seed")


def test_the_option_shifts_every_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for option in ("0", "1", "0"):
        monkeypatch.setenv(seeds.VARIABLE, option)
        seeds.seed_torch()
        drawn.append((torch.rand(9), make(3, 9, 2).hidden, make(3, 9, 2, seed=1).hidden))
    for first, other, again in zip(*drawn, strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    monkeypatch.setenv(seeds.VARIABLE, "0")
    seeds.seed_torch()
    expected = torch.rand(9)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(9), expected)


def test_nothing_is_seeded_elsewhere() -> None:
    found = [
        f"{path.name}:{number}"
        for path in sorted(Path(__file__).parent.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if path.name not in OWN and SEEDING.search(line)
    ]
    assert found == []
