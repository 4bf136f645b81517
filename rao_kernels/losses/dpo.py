"""DPO and the pair losses that keep its logistic function.

DPO (`sigmoid`), cDPO (`cdpo`), Robust DPO (`robust`), Length-normalised DPO (`sigmoid_norm`),
DPO+NLL or Iterative RPO (`dpo_nll`), R-DPO (`r_dpo`), AOT (`aot`).

Legend: w chosen, l rejected; D log-ratio of a response to the reference, n its length in tokens;
h = D_w - D_l, u = beta h; sp(a) = log(1 + exp(a)); P pairs. With the option `f_divergence`, its
score replaces D (f-DPO, see `modifiers`).
"""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from ..errors import InputError
from ._inputs import LossInputs
from ._spec import PAIR, REFERENCE, LossSpec
from ._terms import (
    Terms,
    check_not_negative,
    check_positive,
    log_ratios,
    logistic,
    pair_metrics,
    pair_up,
    pair_weights,
    per_token,
    reference_logps,
)
from .modifiers import ScoreOptions, margin_row, margin_terms, smoothed


def dpo(
    inputs: LossInputs, *, beta: float, label_smoothing: float, **options: Unpack[ScoreOptions]
) -> Terms:
    """DPO: ``sp(-u)``, mean over pairs.

    Rafailov et al. 2023, arXiv 2305.18290, Eq. 7. dL/dD_w = -beta sigmoid(-u).

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        label_smoothing: assumed share of flipped labels, from 0 to 1, as in cDPO; 0 is off.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``.
    """
    check_positive("beta", beta)
    surrogate = smoothed(logistic, label_smoothing)
    return margin_terms(inputs, pair_up(inputs), beta, surrogate, **options)


def cdpo(
    inputs: LossInputs, *, beta: float, label_smoothing: float, **options: Unpack[ScoreOptions]
) -> Terms:
    """cDPO: ``(1 - e) sp(-u) + e sp(u)``, mean over pairs: DPO with label smoothing.

    Mitchell 2023, ericmitchell.ai/cdpo.pdf, Eq. 3. Equal to ``sp(-u) + e u``, smallest at
    ``u = log((1 - e) / e)``.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        label_smoothing: e, the assumed share of flipped labels, from 0 to 1; 0 is DPO.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``.
    """
    return dpo(inputs, beta=beta, label_smoothing=label_smoothing, **options)


def sigmoid_norm(
    inputs: LossInputs, *, beta: float, label_smoothing: float, **options: Unpack[ScoreOptions]
) -> Terms:
    """Length-normalised DPO: ``sp(-beta (D_w / n_w - D_l / n_l))``, mean over pairs.

    Lambert et al. 2024 (Tulu 3), arXiv 2411.15124.

    Args:
        beta: KL coefficient, in reward per nat of mean log-ratio; the implicit reward is
            beta D / n.
        label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``.
    """
    check_positive("beta", beta)
    surrogate = smoothed(logistic, label_smoothing)
    return margin_terms(inputs, pair_up(inputs), beta, surrogate, length_normalized=True, **options)


def robust(
    inputs: LossInputs, *, beta: float, label_smoothing: float, **options: Unpack[ScoreOptions]
) -> Terms:
    """Robust DPO: ``((1 - e) sp(-u) - e sp(u)) / (1 - 2 e)``, mean over pairs.

    Chowdhury et al. 2024, arXiv 2403.00409. Computed as ``sp(-u) - e u / (1 - 2 e)``,
    which is equal; not bounded below.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        label_smoothing: e, the share of flipped labels, from 0 to below 1/2.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``.
    """
    check_positive("beta", beta)
    if not 0 <= label_smoothing < 0.5:
        raise InputError("label_smoothing", "a number in [0, 0.5)", label_smoothing)
    slope = label_smoothing / (1 - 2 * label_smoothing)

    def surrogate(margin: Tensor) -> Tensor:
        return logistic(margin) - slope * margin

    return margin_terms(inputs, pair_up(inputs), beta, surrogate, **options)


def dpo_nll(
    inputs: LossInputs,
    *,
    beta: float,
    sft_weight: float,
    label_smoothing: float,
    **options: Unpack[ScoreOptions],
) -> Terms:
    """DPO+NLL (Iterative RPO): ``sp(-u) - sft_weight l_w / n_w``, mean over pairs.

    Pang et al. 2024, arXiv 2404.19733, Eq. 1. l_w is the chosen response's log-probability.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        sft_weight: weight of the chosen response's NLL per token, 0 or more; 0 is DPO.
        label_smoothing: assumed share of flipped labels in the DPO term, from 0 to 1; 0 is off.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``, with the metric `nll_loss`.
    """
    check_not_negative("sft_weight", sft_weight)
    terms = dpo(inputs, beta=beta, label_smoothing=label_smoothing, **options)
    nll = -per_token(inputs.logps, inputs)[pair_up(inputs).chosen]
    return Terms(terms.values + sft_weight * nll, {**terms.metrics, "nll_loss": nll.mean()})


def r_dpo(
    inputs: LossInputs,
    *,
    beta: float,
    alpha: float,
    label_smoothing: float,
    **options: Unpack[ScoreOptions],
) -> Terms:
    """R-DPO, length-regularised: ``sp(-(u + alpha (n_w - n_l)))``, mean over pairs.

    Park et al. 2024, arXiv 2403.19159.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        alpha: cost on the reward, per token: it shrinks the gradient where the chosen response is
            the longer one.
        label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off.
        options: see `ScoreOptions`.

    Returns:
        Values ``[P]``.
    """
    check_positive("beta", beta)
    pairs = pair_up(inputs)
    longer = inputs.lengths[pairs.chosen] - inputs.lengths[pairs.rejected]
    smooth = smoothed(logistic, label_smoothing)

    def surrogate(margin: Tensor) -> Tensor:
        return smooth(margin + alpha * longer.double())

    return margin_terms(inputs, pairs, beta, surrogate, **options)


def aot(inputs: LossInputs, *, beta: float, label_smoothing: float) -> Terms:
    """AOT: ``sp(-beta (m_(k) - mref_(k)))``, mean over ranks k of the sorted m and mref.

    Melnyk et al. 2024, arXiv 2406.05882. m = l_w - l_l is a pair's difference of log-probs,
    mref the same under the reference; each is sorted by itself. The sort couples the pairs of one
    call: the parts of a batch do not add up to the whole.

    Args:
        beta: KL coefficient, in reward per nat; the implicit reward is beta D.
        label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off.

    Returns:
        Values ``[P]``: value k belongs to rank k, not to pair k.
    """
    check_positive("beta", beta)
    pairs = pair_up(inputs)
    chosen, rejected = pairs.split(inputs.logps)
    ref_chosen, ref_rejected = pairs.split(reference_logps(inputs))
    gap = (chosen - rejected).sort().values - (ref_chosen - ref_rejected).sort().values
    values = smoothed(logistic, label_smoothing)(beta * gap)
    return Terms(values, pair_metrics(inputs, pairs, beta * log_ratios(inputs)))


ROWS: tuple[LossSpec, ...] = (
    margin_row(
        "sigmoid",
        "DPO",
        dpo,
        {"beta": 0.1, "label_smoothing": 0.0},
        "Rafailov et al. 2023, Direct Preference Optimization, arXiv 2305.18290, Eq. 7",
        defaults_from="beta 0.1 is the paper's (Appendix B) and TRL's.",
        notes=("TRL's sigmoid and Liger's ignore label_smoothing.",),
    ),
    margin_row(
        "cdpo",
        "cDPO",
        cdpo,
        {"beta": 0.1, "label_smoothing": 0.1},
        (
            "Mitchell 2023, A note on DPO with noisy preferences & relationship to IPO, "
            "ericmitchell.ai/cdpo.pdf, Eq. 3"
        ),
        defaults_from="beta 0.1 is DPO's, label_smoothing 0.1 that of `robust`.",
        notes=("TRL and Liger have no key for it; HALOs' label_smoothing is 0.2.",),
    ),
    margin_row(
        "robust",
        "Robust DPO",
        robust,
        {"beta": 0.1, "label_smoothing": 0.1},
        (
            "Chowdhury et al. 2024, Provably Robust DPO: Aligning Language Models with Noisy "
            "Feedback, arXiv 2403.00409"
        ),
        defaults_from="beta 0.1 (Table 4) and label_smoothing 0.1 (Sec. 6) are the paper's.",
        notes=("TRL's default label_smoothing is 0, which is `sigmoid`.",),
    ),
    margin_row(
        "sigmoid_norm",
        "Length-normalised DPO",
        sigmoid_norm,
        {"beta": 0.1, "label_smoothing": 0.0},
        (
            "Lambert et al. 2024, Tulu 3: Pushing Frontiers in Open Language Model Post-Training, "
            "arXiv 2411.15124"
        ),
        defaults_from=(
            "beta 0.1 is TRL's; for a mean log-ratio it is small, and the Tulu 3 "
            "models were trained with 5."
        ),
        notes=("TRL divides by the length of the mask, which counts the same tokens.",),
    ),
    margin_row(
        "dpo_nll",
        "DPO+NLL",
        dpo_nll,
        {"beta": 0.1, "sft_weight": 1.0, "label_smoothing": 0.0},
        "Pang et al. 2024, Iterative Reasoning Preference Optimization, arXiv 2404.19733, Eq. 1",
        defaults_from="the paper's.",
        notes=(
            'The likelihood is a mean over tokens for each pair. TRL\'s loss_type=["sigmoid", '
            '"sft"] takes it over all tokens: LOSSES.combine({"sigmoid": 1.0, "sft": 1.0}).',
        ),
    ),
    margin_row(
        "r_dpo",
        "R-DPO",
        r_dpo,
        {"beta": 0.1, "alpha": 0.01, "label_smoothing": 0.0},
        (
            "Park et al. 2024, Disentangling Length from Quality in Direct Preference "
            "Optimization, arXiv 2403.19159"
        ),
        defaults_from="beta 0.1 is DPO's; choose alpha, 0.01 per token, for the data.",
        notes=(
            "The sign follows from the paper's penalty of alpha per token on the reward; it is "
            "printed the other way round in some tables, which is a negative alpha here.",
        ),
    ),
    LossSpec(
        name="aot",
        title="AOT",
        unit="pair",
        terms=aot,
        weights=pair_weights,
        needs=(*PAIR, REFERENCE),
        defaults={"beta": 0.01, "label_smoothing": 0.0},
        paper=(
            "Melnyk et al. 2024, Distributional Preference Alignment of LLMs via Optimal "
            "Transport, arXiv 2406.05882"
        ),
        defaults_from="beta 0.01 is the paper's (Figure 2); TRL's is 0.1.",
        notes=("Sorted over the pairs of one call; TRL sorts over those of one device.",),
    ),
)
