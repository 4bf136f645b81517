"""TRL: log-probs out of full logits, and its chunked function (the trainers' since 1.15)."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from ..problems import capped
from ._interface import LogProbs, Provider


def _selective(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    from trl.trainer.utils import selective_log_softmax

    found: Tensor = selective_log_softmax(capped(hidden @ weight.T, softcap), targets)
    return found


def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """Call it as `add_fused_lm_head` does, without the optional outputs, which cost time."""
    utils: Any = importlib.import_module("trl.trainer.utils")
    found: Tensor = utils._ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, utils._CHUNKED_LOGPROB_CHUNK_SIZE, softcap, 1.0, ()
    )[0]
    return found


def providers(device: torch.device) -> list[Provider]:
    return [
        Provider("TRL selective_log_softmax", LogProbs(_selective).prepare, ("trl",)),
        Provider("TRL chunked log-probs", LogProbs(_chunked).prepare, ("trl",)),
    ]
