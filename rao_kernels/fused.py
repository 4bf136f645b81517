"""Losses on hidden states and a head: rows to log-probs, to sums over sequences, to a loss.

Legend: D hidden size, V vocabulary, S sequences, R response tokens, Q prompt tokens.
Hidden states are ``[B, T, D]`` or ``[N, D]``, like the ids the batch was built from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from .errors import InputError
from .losses import LOSSES, CombinedLoss, Loss, LossInputs, LossSpec, reduce_units
from .losses.hyperparameters import LossKey
from .losses.rao import LogZ0Estimate, PromptTerm
from .ops.linear_logprobs import linear_token_stats
from .sequence import IGNORE, SequenceBatch
from .types import EngineOptions, LossOutput, TokenStats

Prompts = Literal["skipped", "detached", "grad"]
Values = Literal["unread", "of_prompts", "of_tokens"]
# Inputs of losses that the op gives in the same pass as log-probs.
TOKEN_STATS = {"token_entropy": "entropy", "token_log_sum_sq": "log_sum_sq_probs"}
UserLoss = Callable[..., Tensor | LossOutput]


@dataclass(frozen=True)
class Scoring:
    """The values a loss needs of the head beside the log-probs of the response tokens.

    Used by `fused_loss`, which selects rows of hidden states, and by the trainer, whose model has
    the fused head and takes a target per position.

    Attributes:
        prompts: "skipped": not scored; "detached": scored without gradient; "grad": with one.
        stats: inputs of the loss, out of `TOKEN_STATS`, that the head gives.
        values: outputs of a value head that the loss reads: at the last token of each prompt, where
            the first response token is predicted, or where each response token is.
    """

    prompts: Prompts
    stats: tuple[str, ...] = ()
    values: Values = "unread"

    @property
    def head_stats(self) -> tuple[str, ...]:
        """Names that the op and the fused head have for `stats`."""
        return tuple(TOKEN_STATS[name] for name in self.stats)

    def head_inputs(self, batch: SequenceBatch) -> dict[str, Tensor | None]:
        """Return `logp_targets` and `logp_grad_mask` of a model with the fused head."""
        targets, learned = batch.logp_targets, batch.logp_grad_mask
        if self.prompts == "skipped":
            targets = targets.masked_fill(~learned, IGNORE)
        mask = learned if self.prompts == "detached" else None
        return {"logp_targets": targets, "logp_grad_mask": mask}

    @property
    def model_stats(self) -> tuple[str, ...]:
        """The `logp_stats` to ask of a model with the fused head, and a value head if needed."""
        return self.head_stats + (() if self.values == "unread" else ("token_values",))

    def loss_inputs_of(
        self, batch: SequenceBatch, outputs: Any, given: Mapping[str, Tensor | None]
    ) -> LossInputs:
        """Collect the inputs of the loss from what the model returned for `head_inputs`.

        Args:
            outputs: a `FusedLMOutput`: tensors shaped like the ids.
            given: the other inputs of the loss, as `SequenceBatch.loss_inputs` takes them.
        """
        rows, logps = batch.response_rows, outputs.token_logps.reshape(-1)
        prompt = None if self.prompts == "skipped" else logps[batch.prompt_rows]
        stats = {name: getattr(outputs, name).reshape(-1)[rows] for name in self.head_stats}
        if self.values == "of_prompts":
            given = {**given, "values": outputs.token_values.reshape(-1)[batch.prompt_end_rows]}
        elif self.values == "of_tokens":
            given = {**given, "values": outputs.token_values}
        return self.loss_inputs(batch, logps[rows], prompt, stats, given)

    def loss_inputs(
        self,
        batch: SequenceBatch,
        response_logps: Tensor,
        prompt_logps: Tensor | None,
        stats: Mapping[str, Tensor],
        given: Mapping[str, Tensor | None],
    ) -> LossInputs:
        """Collect the inputs of the loss from results per row.

        Args:
            response_logps, prompt_logps: ``[R]`` and ``[Q]``; None: prompts were not scored.
            stats: ``[R]`` statistics of the response rows by the names of `head_stats`.
            given: the other inputs of the loss.
        """
        found = batch.row_loss_inputs(response_logps, prompt_logps, **given)
        own: dict[str, Any] = {name: stats[TOKEN_STATS[name]] for name in self.stats}
        return replace(found, **own)


def scoring_of(loss: Loss, hyper: Mapping[str, Any], given: Collection[str] = ()) -> Scoring:
    """Return the scoring for `loss`, alone or a sum, under these hyperparameters.

    given: inputs of the loss that come from elsewhere, and are not asked of the head.
    """
    needs = loss.required_inputs(hyper)
    prompts: Prompts = "skipped"
    if "prompt_logps" in needs:
        terms = [bound.get("prompt_term") for _, bound in loss.bound_parts(hyper)]
        prompts = "grad" if "grad" in terms else "detached"
    stats = tuple(name for name in TOKEN_STATS if name in needs and name not in given)
    return Scoring(prompts, stats, _values_read(loss, hyper))


def _values_read(loss: Loss, hyper: Mapping[str, Any]) -> Values:
    """Return which values the loss reads: one per token where it is a mean over tokens."""
    units = {
        "of_tokens" if spec.unit == "token" else "of_prompts"
        for spec, bound in loss.bound_parts(hyper)
        if "values" in spec.required_inputs(bound)
    }
    if len(units) > 1:
        expected = "losses that read values of prompts, or losses that read values of tokens"
        raise InputError("loss", expected, f"{loss.name!r}, with both")
    if not units:
        return "unread"
    return "of_tokens" if "of_tokens" in units else "of_prompts"


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
    """Compute RAO's loss ``(r - beta (D + log_z0 + DX))^2`` from hidden states, without logits.

    D and DX are the log-ratios of response and prompt to the reference; the loss is the mean over
    prompts of the means over their responses (docs/rao.md).

    The defaults are the paper's. With rewards of a few units or less ``log_z0=50`` asks every
    response to lose probability; on a CPU a `OneSidedTargetsWarning` says so.

    Args:
        hidden: ``[B, T, D]`` or ``[N, D]`` hidden states of the last layer, like the ids of
            `batch`; any dtype the op takes.
        weight: ``[V, D]`` the head.
        batch: the sequences.
        rewards: ``[S]`` one per response.
        ref_logps: ``[S]`` log-probability of each response under the reference, in nats, best in
            fp64 (`sequence_and_prompt_logps` of the reference gives both).
        ref_prompt_logps: ``[S]`` the same of each prompt; None only with ``prompt_term="none"``.
        beta: strength of the pull to the reference, in reward per nat, above 0.
        log_z0: log Z(t0) in nats, or "auto" or "logmeanexp": `fit_log_z0` of these rewards. For
            several micro-batches of one step, estimate it once and pass the number, as
            `RAOTrainer` does with the whole training set.
        prompt_term: how the prompt's log-ratio enters, see `rao_kernels.losses.rao.rao`.
        normalizer: what the sum over prompts is divided by; None: their number in the batch.
        options: of the op and of the head, see `HeadOptions`.

    Returns:
        `LossOutput`: the scalar loss, differentiable in `hidden` and `weight`; values ``[S]``;
        detached metrics.

    Raises:
        InputError: an argument has another shape, dtype, device or range than stated.

    Example:
        >>> batch = SequenceBatch.from_padded(ids, answers, groups=torch.tensor([0, 0, 1, 1]))
        >>> logps, prompt_logps = sequence_and_prompt_logps(ref_hidden, ref_weight, batch)
        >>> out = rao_loss(hidden, weight, batch, rewards=rewards, ref_logps=logps,
        ...                ref_prompt_logps=prompt_logps, log_z0="auto")
        >>> out.loss.backward()
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
    """Compute a loss of `LOSSES`, or a function of your own, from hidden states, without logits.

    Args:
        name_or_function: a name of `LOSSES`, a loss of it or several joined by `LOSSES.combine`,
            or ``f(inputs: LossInputs, **hyper)`` that returns values ``[S]``, of which the loss
            is the mean over sequences, or a `LossOutput`. If `inputs` has `ref_prompt_logps`, the
            function gets `prompt_logps` too, without gradient.
        hidden: ``[B, T, D]`` or ``[N, D]`` hidden states of the last layer, like the ids of
            `batch`.
        weight: ``[V, D]`` the head.
        batch: the sequences.
        inputs: fields of `LossInputs` beside the log-probs of the policy; those with a value
            per token are shaped like the ids. `token_entropy` and `token_log_sum_sq` come from
            the op if the loss needs them and they are not given.
        hyper: hyperparameters by name (types: `rao_kernels.losses.hyperparameters`); the loss's
            defaults stand for those left out.
        normalizer: what the sum over the loss's units is divided by; None: their number in the
            batch. For micro-batches of one step pass the units of the whole step.
        options: of the op and of the head, see `HeadOptions`.

    Returns:
        `LossOutput`: the scalar loss, differentiable in `hidden` and `weight`; its unreduced
        values; detached metrics.

    Raises:
        InputError: the loss or a hyperparameter is unknown, an input that the loss needs is
            missing, or an argument has another shape, dtype, device or range than stated.

    Example:
        >>> out = fused_loss("dpo", hidden, weight, batch,
        ...                  inputs={"ref_logps": ref_logps, "preferred": preferred})
        >>> out.loss.backward()
    """
    hyper = {} if hyper is None else hyper
    if isinstance(name_or_function, str):
        name_or_function = LOSSES.find(name_or_function, "name_or_function")
    if isinstance(name_or_function, LossSpec | CombinedLoss):
        given = [name for name, value in inputs.items() if value is not None]
        scoring = scoring_of(name_or_function, hyper, given)
        loss_inputs = _score(hidden, weight, batch, scoring, inputs, **options)
        return name_or_function(loss_inputs, normalizer=normalizer, **hyper)
    scoring = Scoring("skipped" if inputs.get("ref_prompt_logps") is None else "detached")
    loss_inputs = _score(hidden, weight, batch, scoring, inputs, **options)
    return _run_user_loss(name_or_function, loss_inputs, hyper, normalizer)


def sequence_logps(
    hidden: Tensor, weight: Tensor, batch: SequenceBatch, **options: Unpack[HeadOptions]
) -> Tensor:
    """Return the log-probability of each response.

    Args:
        hidden: ``[B, T, D]`` or ``[N, D]``, like the ids of `batch`.
        weight: ``[V, D]`` the head.
        batch: the sequences.
        options: of the op and of the head, see `HeadOptions`.

    Returns:
        ``[S]`` fp64, in nats, differentiable in `hidden` and `weight`; 0 for an empty response.

    Raises:
        InputError: an argument has another shape, dtype, device or range than stated.
    """
    return _score(hidden, weight, batch, Scoring("skipped"), {}, **options).logps


def sequence_and_prompt_logps(
    hidden: Tensor, weight: Tensor, batch: SequenceBatch, **options: Unpack[HeadOptions]
) -> tuple[Tensor, Tensor]:
    """Return `sequence_logps`, and the log-probability of each prompt after its prefix.

    Arguments and errors are those of `sequence_logps`.

    Returns:
        Two tensors ``[S]`` fp64, in nats; the prompts' carries no gradient. Pass both on as
        `ref_logps` and `ref_prompt_logps` as they are: rounded to fp32, the sum of 32,000 tokens
        is off by up to 0.002 nats.
    """
    inputs = _score(hidden, weight, batch, Scoring("detached"), {}, **options)
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
            expected = "None, as the function reduced its values to a LossOutput itself"
            raise InputError("normalizer", expected, normalizer)
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
    scoring: Scoring,
    inputs: Mapping[str, Tensor | None],
    **options: Unpack[HeadOptions],
) -> LossInputs:
    """Run the op on the rows that `scoring` wants, and join the results with `inputs`."""
    _check_hidden(hidden, weight, batch)
    flat = hidden.reshape(-1, hidden.shape[-1])

    def score(rows: Tensor, targets: Tensor, stats: tuple[str, ...]) -> TokenStats:
        states = flat.index_select(0, rows)
        return linear_token_stats(
            states, weight, targets, ignore_index=None, stats=stats, **options
        )

    rows, targets, size = batch.response_rows, batch.response_targets, batch.response_rows.numel()
    if scoring.prompts == "grad":
        rows = torch.cat([rows, batch.prompt_rows])
        targets = torch.cat([targets, batch.prompt_targets])
    scores = score(rows, targets, scoring.head_stats)
    prompt = scores.logps[size:] if scoring.prompts == "grad" else None
    if scoring.prompts == "detached":
        with torch.no_grad():
            prompt = score(batch.prompt_rows, batch.prompt_targets, ()).logps
    stats = {name: getattr(scores, name)[:size] for name in scoring.head_stats}
    return scoring.loss_inputs(batch, scores.logps[:size], prompt, stats, inputs)


def _check_hidden(hidden: Tensor, weight: Tensor, batch: SequenceBatch) -> None:
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
