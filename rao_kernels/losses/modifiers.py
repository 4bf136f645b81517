"""Options and building blocks of pair losses with a reference: LD-DPO, f-DPO, WPO, label smoothing.

Legend: N response tokens, S sequences, P pairs; w chosen, l rejected; D log-ratio of a response to
the reference, a = beta D, u = beta (D_w - D_l), l_t log-probability of token t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..segments import segment_offsets, segment_sum
from ._inputs import LossInputs
from ._spec import PAIR, REFERENCE, LossSpec
from ._terms import (
    Pairs,
    Terms,
    check_fraction,
    check_positive,
    log_ratios,
    pair_metrics,
    pair_up,
    pair_weights,
    per_token,
)

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
Surrogate = Callable[[Tensor], Tensor]

# From this exponent on an exponential continues as its tangent, so that no factor of a gradient
# exceeds e^20 = 5e8. With larger factors the squares in a global gradient norm overflow in fp32,
# and clipping to an infinite norm sets the whole step to zero. A constant instead of the tangent
# would stop the gradient where it is largest. A score that is squared afterwards uses half the
# exponent.
MAX_EXPONENT = 20.0


class PairOptions(TypedDict):
    """Options of every pair loss with a reference.

    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411).
    ld_reference: True applies those weights to the reference too, False to the policy only.
    wpo: True weighs each pair, without gradient, by the product of its responses'
        ``exp(mean(l_t - log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped"
        clamps that weight at 1; False is off.
    """

    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool


class ScoreOptions(PairOptions):
    """Options of every function of the margin: there the log-partition function cancels.

    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240).
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL.
    """

    f_divergence: Divergence
    f_alpha: float


PAIR_DEFAULTS: dict[str, Any] = {"ld_alpha": 1.0, "ld_reference": True, "wpo": False}
SCORE_DEFAULTS: dict[str, Any] = {**PAIR_DEFAULTS, "f_divergence": "reverse_kl", "f_alpha": 0.5}
NEEDS = (REFERENCE, "ref_token_logps", "token_log_sum_sq")
NEEDED_UNLESS = {
    "ref_token_logps": (("ld_alpha", 1.0), ("ld_reference", False)),
    "token_log_sum_sq": (("wpo", False),),
}
NOTES = (
    "ld_alpha: TRL weighs policy and reference (the default here), LLaMA-Factory the policy only "
    "(ld_reference=False).",
    "wpo: TRL does not clamp the weight (wpo=True), the authors' code clamps it at 1 "
    '(wpo="clamped").',
)
SCORE_NOTES = (
    *NOTES,
    "f_alpha is the paper's; TRL's f_alpha_divergence_coef is 1 minus it. Scores equal TRL's with "
    "the constant, which matters where they are divided by lengths. Exponentials continue "
    "as their tangent from e^20 on, from e^10 where the loss squares the score; in TRL they "
    "overflow, or stop the gradient at e^80.",
)


def pair_ratios(inputs: LossInputs, pairs: Pairs, *, ld_alpha: float, ld_reference: bool) -> Tensor:
    """Return ``[S]`` D, length-desensitised where `ld_alpha` is not 1."""
    if check_fraction("ld_alpha", ld_alpha) == 1:
        return log_ratios(inputs)
    shared = torch.minimum(inputs.lengths[pairs.chosen], inputs.lengths[pairs.rejected])
    limits = torch.empty_like(inputs.lengths)
    limits = limits.scatter(0, pairs.chosen, shared).scatter(0, pairs.rejected, shared)
    offsets = segment_offsets(inputs.segments, inputs.num_sequences)
    position = torch.arange(len(inputs.segments), device=offsets.device) - offsets[inputs.segments]
    beyond = position >= limits[inputs.segments]
    weights = 1 - (1 - ld_alpha) * beyond.double()
    if ld_reference:
        differences = (
            inputs.token_logps.double() - inputs.require("ref_token_logps").detach().double()
        )
        return segment_sum(weights * differences, inputs.segments, inputs.num_sequences)
    tail = (1 - weights) * inputs.token_logps.double()
    return log_ratios(inputs) - segment_sum(tail, inputs.segments, inputs.num_sequences)


def divergence_scores(
    ratios: Tensor, divergence: Divergence, alpha: float, max_exponent: float = MAX_EXPONENT
) -> Tensor:
    """Return ``f'(e^D)``: D, ``1 - e^-D``, ``log(2 sigmoid(D))``, ``(1 - e^-aD)/a``; 0 at D = 0."""
    if divergence not in get_args(Divergence):
        raise InputError("f_divergence", f"one of {get_args(Divergence)}", repr(divergence))
    if divergence == "js":
        return F.logsigmoid(ratios) + math.log(2)
    slope = {"reverse_kl": 0.0, "forward_kl": 1.0, "alpha": alpha}[divergence]
    return ratios if slope == 0 else -expm1(-slope * ratios, max_exponent) / slope


def expm1(exponent: Tensor, max_exponent: float = MAX_EXPONENT) -> Tensor:
    """Return ``exp(exponent) - 1``, continued as its tangent from `max_exponent` on."""
    beyond = F.relu(exponent - max_exponent)
    return torch.expm1(exponent - beyond) + math.exp(max_exponent) * beyond


def smoothed(surrogate: Surrogate, label_smoothing: float) -> Surrogate:
    """Return ``(1 - e) L(u) + e L(-u)``: a share e of the labels is assumed to be flipped."""
    if check_fraction("label_smoothing", label_smoothing) == 0:
        return surrogate

    def mixed(margin: Tensor) -> Tensor:
        straight, flipped = surrogate(margin), surrogate(-margin)
        return (1 - label_smoothing) * straight + label_smoothing * flipped

    return mixed


def pair_importance(
    inputs: LossInputs, pairs: Pairs, wpo: Literal["clamped"] | bool
) -> Tensor | float:
    """Return ``[P]`` weights of WPO, without gradient; 1 where it is off."""
    if not isinstance(wpo, bool) and wpo != "clamped":
        raise InputError("wpo", "True, False or 'clamped'", repr(wpo))
    if wpo is False:
        return 1.0
    aligned = inputs.token_logps.detach().double() - inputs.require("token_log_sum_sq").double()
    means = per_token(segment_sum(aligned, inputs.segments, inputs.num_sequences), inputs)
    chosen, rejected = pairs.split(means)
    weight = (chosen + rejected).exp()
    return weight.clamp(max=1) if wpo == "clamped" else weight


# Pair losses, built from these parts.


def margin_terms(
    inputs: LossInputs,
    pairs: Pairs,
    beta: float,
    surrogate: Surrogate,
    *,
    length_normalized: bool = False,
    squared: bool = False,
    **options: Unpack[ScoreOptions],
) -> Terms:
    """Return ``surrogate(u)`` of each pair, under the options of a function of the margin.

    squared: True if the surrogate squares the margin; exponentials then continue as their tangent
    from half the exponent on.
    """
    ratios = pair_ratios(
        inputs, pairs, ld_alpha=options["ld_alpha"], ld_reference=options["ld_reference"]
    )
    max_exponent = MAX_EXPONENT / 2 if squared else MAX_EXPONENT
    scores = divergence_scores(ratios, options["f_divergence"], options["f_alpha"], max_exponent)
    if length_normalized:
        scores = per_token(scores, inputs)
    implicit = beta * scores
    chosen, rejected = pairs.split(implicit)
    weight = pair_importance(inputs, pairs, options["wpo"])
    return Terms(weight * surrogate(chosen - rejected), pair_metrics(inputs, pairs, implicit))


def pointwise_terms(
    inputs: LossInputs,
    beta: float,
    surrogate: Callable[[Tensor, Tensor], Tensor],
    **options: Unpack[PairOptions],
) -> Terms:
    """Return ``surrogate(a_w, a_l)`` of each pair, under the options of a pair loss."""
    check_positive("beta", beta)
    pairs = pair_up(inputs)
    ratios = pair_ratios(
        inputs, pairs, ld_alpha=options["ld_alpha"], ld_reference=options["ld_reference"]
    )
    implicit = beta * ratios
    weight = pair_importance(inputs, pairs, options["wpo"])
    values = weight * surrogate(*pairs.split(implicit))
    return Terms(values, pair_metrics(inputs, pairs, implicit))


def margin_row(
    name: str,
    title: str,
    terms: Callable[..., Terms],
    defaults: dict[str, Any],
    paper: str,
    *,
    defaults_from: str,
    needs: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> LossSpec:
    """Build the `LossSpec` of a function of the margin, with the options of `ScoreOptions`."""
    return LossSpec(
        name=name,
        title=title,
        unit="pair",
        terms=terms,
        weights=pair_weights,
        needs=(*PAIR, *needs, *NEEDS),
        defaults={**defaults, **SCORE_DEFAULTS},
        paper=paper,
        defaults_from=defaults_from,
        needed_unless=NEEDED_UNLESS,
        notes=(*notes, *SCORE_NOTES),
    )


def pair_row(
    name: str,
    title: str,
    terms: Callable[..., Terms],
    defaults: dict[str, Any],
    paper: str,
    *,
    defaults_from: str,
    notes: tuple[str, ...] = (),
) -> LossSpec:
    """Build the `LossSpec` of any other pair loss, with the options of `PairOptions`."""
    return LossSpec(
        name=name,
        title=title,
        unit="pair",
        terms=terms,
        weights=pair_weights,
        needs=(*PAIR, *NEEDS),
        defaults={**defaults, **PAIR_DEFAULTS},
        paper=paper,
        defaults_from=defaults_from,
        needed_unless=NEEDED_UNLESS,
        notes=(*notes, *NOTES),
    )
