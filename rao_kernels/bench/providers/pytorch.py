"""PyTorch: full logits, eager and compiled, and its own chunked `linear_cross_entropy`."""

from __future__ import annotations

from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problems import Problem, plain_logps
from ._interface import Call, LogProbs, Provider, Unsupported, differentiated

PLAIN = "plain torch"


@cache
def _compiled() -> LogProbs:
    run = torch.compile(plain_logps, dynamic=False)
    return LogProbs(run, every_position=True)


def _prepare_compiled(problem: Problem, direction: str) -> Call:
    return _compiled().prepare(problem, direction)


def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    if softcap is not None:
        raise Unsupported("no softcap")
    options = torch.nn.LinearCrossEntropyOptions()
    return -F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)


def _prepare_chunked(problem: Problem, direction: str) -> Call:
    """Use the mean reduction for SFT, whose gradients come with the forward."""
    if not hasattr(F, "linear_cross_entropy"):
        raise Unsupported(f"torch {torch.__version__} has none; torch 2.13 does")
    if problem.task != "sft":
        return LogProbs(_chunked).prepare(problem, direction)
    batch, options = problem.batch, torch.nn.LinearCrossEntropyOptions()
    mean = partial(F.linear_cross_entropy, target=batch.response_targets, options=options)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return mean(hidden.flatten(0, 1)[batch.response_rows], weight)

    return differentiated(loss, problem, direction)


def providers(device: torch.device) -> list[Provider]:
    return [
        Provider(PLAIN, LogProbs(plain_logps, every_position=True).prepare),
        Provider("plain torch, torch.compile", _prepare_compiled),
        Provider("torch linear_cross_entropy", _prepare_chunked),
    ]
