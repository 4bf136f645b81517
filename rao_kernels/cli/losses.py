"""`rao-kernels losses`: the table of losses."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def run(argv: Sequence[str]) -> None:
    """Print each loss with its unit, hyperparameters, inputs and source."""
    argparse.ArgumentParser(prog="rao-kernels losses", description=__doc__).parse_args(argv)
    from ..losses import LOSSES

    for spec in LOSSES.values():
        hyper = ", ".join(f"{name}={value!r}" for name, value in spec.defaults.items())
        print(f"{spec.name}  ({spec.paper})")
        print(f"    mean over   {spec.unit}s")
        print(f"    parameters  {hyper or 'none'}")
        print(f"    needs       {', '.join(spec.needs).replace('|', ' or ') or 'log-probs alone'}")
