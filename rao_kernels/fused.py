"""Rows -> log-probs -> segments -> loss: the losses on hidden states and a head.

Legend: D hidden size, V vocabulary, S sequences, R response tokens, Q prompt tokens.
Hidden states are ``[B, T, D]`` or ``[N, D]``, like the ids the batch was built from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from .errors import InputError
from .losses import LOSSES, CombinedLoss, Loss, LossInputs, LossSpec, reduce_units
from .losses.hyperparameters import LossKey
from .losses.rao import LogZ0Estimate, PromptTerm
from .ops.linear_logprobs import linear_token_stats
from .sequence import SequenceBatch
from .types import EngineOptions, LossOutput, TokenStats

Prompts = Literal["skipped", "detached", "grad"]
# Inputs of losses that the op gives in the same pass as log-probs.
TOKEN_STATS = {"token_entropy": "entropy", "token_log_sum_sq": "log_sum_sq_probs"}
UserLoss = Callable[..., Tensor | LossOutput]


@dataclass(frozen=True)
class Scoring:
    """What a loss reads of the head beside the log-probs of the response tokens.

    prompts: whether the prompts are scored, and with a gradient or without.
    stats: inputs of `TOKEN_STATS` it needs.
    """

    prompts: Prompts
    stats: tuple[str, ...]


def scoring_of(loss: Loss, hyper: Mapping[str, Any]) -> Scoring:
    """The scoring for `loss`, alone or a sum, under these hyperparameters."""
    needs = loss.required_inputs(hyper)
    prompts: Prompts = "skipped"
    if "prompt_logps" in needs:
        terms = [bound.get("prompt_term") for _, bound in loss.bound_parts(hyper)]
        prompts = "grad" if "grad" in terms else "detached"
    return Scoring(prompts, tuple(name for name in TOKEN_STATS if name in needs))


class HeadOptions(EngineOptions, total=False):
    """Options of the op, and what the head does to its logits (see `linear_logprobs`)."""

    bias: Tensor | None
    logit_scale: float
    logit_softcap: float | None


def rao_loss(
    hidden: Tensor,
    weight: Tensor,
    batch: SequenceBatch,
    *,
    rewards: Tensor,
    ref_logps: Tensor,
    ref_prompt_logps: Tensor | None,
    beta: float = 0.1,
    log_z0: float | LogZ0Estimate = 50.0,
    prompt_term: PromptTerm = "detached",
    normalizer: Tensor | float | None = None,
    **options: Unpack[HeadOptions],
) -> LossOutput:
    """RAO on hidden states: ``(r - beta (D + log_z0 + DX))^2``, mean over prompts of means.

    The defaults are the paper's. With rewards of a few units or less ``log_z0=50`` asks every
    response to lose probability; on a CPU a `OneSidedTargetsWarning` says so.

    Args:
        hidden: ``[B, T, D]`` or ``[N, D]``. weight: ``[V, D]``.
        rewards: ``[S]``. ref_logps, ref_prompt_logps: ``[S]`` under the reference
            (`sequence_and_prompt_logps` of the reference gives them); the latter may be None
            with ``prompt_term="none"``.
        beta: strength of the pull to the reference, in reward per nat.
        log_z0: log Z(t0) in nats, or "auto" or "logmeanexp": `fit_log_z0` of these rewards. Over
            several micro-batches of one step, estimate it once and pass the number.
        prompt_term: how the prompt's log-ratio enters, see `rao_kernels.losses.rao.rao`.
        normalizer: what the sum over prompts is divided by; None: their number in the batch.

    Returns:
        `LossOutput`: loss, values ``[S]``, metrics.

    Raises:
        InputError: an argument has another shape, dtype, device or range than stated.
    """
    inputs = {"rewards": rewards, "ref_logps": ref_logps, "ref_prompt_logps": ref_prompt_logps}
    hyper = {"beta": beta, "log_z0": log_z0, "prompt_term": prompt_term}
    return fused_loss(
        "rao", hidden, weight, batch, inputs=inputs, hyper=hyper, normalizer=normalizer, **options
    )


def fused_loss(
    name_or_function: LossKey | str | Loss | UserLoss,
    hidden: Tensor,
    weight: Tensor,
    batch: SequenceBatch,
    *,
    inputs: Mapping[str, Tensor | None],
    hyper: Mapping[str, Any] | None = None,
    normalizer: Tensor | float | None = None,
    **options: Unpack[HeadOptions],
) -> LossOutput:
    """A loss of `LOSSES`, or a function of the user's, on hidden states.

    Args:
        name_or_function: a name of `LOSSES`, a loss of it or several joined by `LOSSES.combine`,
            or ``f(inputs: LossInputs, **hyper)`` that returns values ``[S]``, of which the loss
            is the mean over sequences, or a `LossOutput`. A function that is given
            `ref_prompt_logps` finds `prompt_logps` too, without gradient.
        inputs: fields of `LossInputs` beside the log-probs of the policy; those with an entry
            per token are shaped like the ids. `token_entropy` and `token_log_sum_sq` come from
            the op where a loss needs them and they are not given.
        hyper: hyperparameters; `rao_kernels.losses.hyperparameters` has their types.
        normalizer: see `LossSpec`.
    """
    hyper = {} if hyper is None else hyper
    if isinstance(name_or_function, str):
        name_or_function = LOSSES.find(name_or_function, "name_or_function")
    if isinstance(name_or_function, LossSpec | CombinedLoss):
        spec = name_or_function
        scoring = scoring_of(spec, hyper)
        stats = tuple(name for name in scoring.stats if inputs.get(name) is None)
        loss_inputs = _score(
            hidden, weight, batch, scoring.prompts, inputs=inputs, stats=stats, **options
        )
        return spec(loss_inputs, normalizer=normalizer, **hyper)
    prompts: Prompts = "skipped" if inputs.get("ref_prompt_logps") is None else "detached"
    loss_inputs = _score(hidden, weight, batch, prompts, inputs=inputs, **options)
    return _run_user_loss(name_or_function, loss_inputs, hyper, normalizer)


def sequence_logps(
    hidden: Tensor, weight: Tensor, batch: SequenceBatch, **options: Unpack[HeadOptions]
) -> Tensor:
    """``[S]`` fp64 log-probability of each response, differentiable; 0 for an empty one."""
    return _score(hidden, weight, batch, "skipped", inputs={}, **options).logps


def sequence_and_prompt_logps(
    hidden: Tensor, weight: Tensor, batch: SequenceBatch, **options: Unpack[HeadOptions]
) -> tuple[Tensor, Tensor]:
    """`sequence_logps`, and ``[S]`` that of each prompt after its prefix, without gradient.

    Both are fp64, and lose nothing as `ref_logps` and `ref_prompt_logps`: rounded to fp32, the sum
    of 32,000 tokens is off by up to 0.002 nats.
    """
    inputs = _score(hidden, weight, batch, "detached", inputs={}, **options)
    return inputs.logps, inputs.require("prompt_logps")


def _run_user_loss(
    function: UserLoss,
    inputs: LossInputs,
    hyper: Mapping[str, Any],
    normalizer: Tensor | float | None,
) -> LossOutput:
    with torch.autocast(inputs.token_logps.device.type, enabled=False):
        result = function(inputs, **hyper)
    if isinstance(result, LossOutput):
        if normalizer is not None:
            raise InputError("normalizer", "None: the function reduces its values", normalizer)
        return result
    if tuple(result.shape) != (inputs.num_sequences,):
        raise InputError(
            "name_or_function",
            f"a function that returns values [S], S = {inputs.num_sequences}, or a LossOutput",
            list(result.shape),
        )
    loss = reduce_units(result, torch.ones_like(result), normalizer)
    return LossOutput(loss.to(inputs.dtype), result.to(inputs.dtype), {})


def _score(
    hidden: Tensor,
    weight: Tensor,
    batch: SequenceBatch,
    prompts: Prompts,
    *,
    inputs: Mapping[str, Tensor | None],
    stats: tuple[str, ...] = (),
    **options: Unpack[HeadOptions],
) -> LossInputs:
    """Log-probs of the response rows, and of the prompt rows if wanted, joined with `inputs` and
    `stats`: names out of `TOKEN_STATS`."""
    if tuple(hidden.shape[:-1]) != batch.token_shape:
        raise InputError(
            "hidden", f"shape {[*batch.token_shape, 'D']}, like the ids", list(hidden.shape)
        )
    if not 0 <= batch.target_bounds[0] <= batch.target_bounds[1] < len(weight):
        raise InputError(
            "input_ids",
            f"tokens of the head's vocabulary, 0 to {len(weight) - 1}",
            f"{batch.target_bounds[0]} to {batch.target_bounds[1]}",
        )
    flat = hidden.reshape(-1, hidden.shape[-1])

    def score(rows: Tensor, targets: Tensor, stats: tuple[str, ...]) -> TokenStats:
        return linear_token_stats(
            flat.index_select(0, rows),
            weight,
            targets,
            ignore_index=None,
            stats=tuple(TOKEN_STATS[name] for name in stats),
            **options,
        )

    rows, targets, size = batch.response_rows, batch.response_targets, batch.response_rows.numel()
    if prompts == "grad":
        rows = torch.cat([rows, batch.prompt_rows])
        targets = torch.cat([targets, batch.prompt_targets])
    scores = score(rows, targets, stats)
    prompt = scores.logps[size:] if prompts == "grad" else None
    if prompts == "detached":
        with torch.no_grad():
            prompt = score(batch.prompt_rows, batch.prompt_targets, ()).logps
    found = batch.row_loss_inputs(scores.logps[:size], prompt, **inputs)
    return replace(found, **{name: getattr(scores, TOKEN_STATS[name])[:size] for name in stats})
