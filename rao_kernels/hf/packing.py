"""Check that a model tells packed sequences apart."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

_LENGTHS = (3, 7, 5)


@torch.no_grad()
def check_packing(model: nn.Module, value_model: nn.Module | None = None) -> None:
    """Raise unless a model reads sequences of one row, told apart by positions, as padded ones.

    Sequences that stand one after another have positions that restart. A model whose layers pass a
    state from token to token (recurrent ones, convolutions) may not look at them. Three short
    sequences are scored both ways; another first sequence must also leave the others unchanged.

    Args:
        model: what `attach_fused_head` returned.
        value_model: a second model that reads the same sequences, see `attach_value_head`.

    Raises:
        InputError: log-probs, or hidden states of `value_model`, differ by more than rounding.
    """
    training = model.training
    model.eval()
    try:
        _check(model, functools.partial(_logps, model))
        if value_model is not None:
            _check(value_model, functools.partial(_states, value_model))
    finally:
        model.train(training)


def _check(model: Any, read: Callable[..., Tensor]) -> None:
    device = next(model.parameters()).device
    size = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(sum(_LENGTHS), device=device) * 7 + 1) % size
    expected = torch.cat([read(input_ids=one[None]) for one in ids.split(_LENGTHS)])
    positions = torch.cat([torch.arange(length, device=device) for length in _LENGTHS])[None]
    packed = read(input_ids=ids[None], position_ids=positions)
    other = torch.cat([(ids[: _LENGTHS[0]] + 5) % size, ids[_LENGTHS[0] :]])
    moved = read(input_ids=other[None], position_ids=positions)
    # Products of other shapes are summed in another order.
    eps = torch.finfo(next(model.parameters()).dtype).eps
    allowed = 64 * eps * float(1 + expected.abs().max())
    far = float((packed - expected).abs().max())
    # Of one shape they are the same to the bit, but where experts get other numbers of tokens.
    leak = float((moved - packed)[_LENGTHS[0] :].abs().max())
    if not (far <= allowed and leak <= (allowed if _has_experts(model) else 0.0)):
        raise InputError(
            "packing",
            "a model that tells packed sequences apart by their positions, or False",
            f"{type(model).__name__}, whose outputs change by {max(far, leak):.2g}",
            "Train without packing: sequences are padded then.",
        )


def _has_experts(model: Any) -> bool:
    settings = vars(model.config.get_text_config())
    return any("expert" in name and name.startswith("n") for name in settings)


def _logps(model: nn.Module, **inputs: Tensor) -> Tensor:
    """Return the log-prob that each position gives to the token 1; of one row."""
    targets = torch.ones_like(inputs["input_ids"])
    logps: Tensor = model(**inputs, logp_targets=targets).token_logps
    return logps[0].double()


def _states(model: Any, **inputs: Tensor) -> Tensor:
    states: Tensor = model.base_model(**inputs, use_cache=False)[0]
    return states[0].double()
