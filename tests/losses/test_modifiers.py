"""Options of the pair losses: each has its documented effect on every loss that lists it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count

import pytest
import torch

from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES, LossInputs
from rao_kernels.losses.modifiers import MAX_EXPONENT

from .cases import coefficients, make, pairs, permuted
from .scalars import logistic, softplus

OPTIONS: dict[str, list[object]] = {
    "f_divergence": ["forward_kl", "js", "alpha"],
    "ld_alpha": [0.0, 0.5],
    "wpo": [True, "clamped"],
    "label_smoothing": [0.3],
}
LISTED = [
    (name, option, value)
    for name, spec in LOSSES.items()
    for option, values in OPTIONS.items()
    if option in spec.defaults and ("ld_alpha" in spec.defaults or name == "aot")
    for value in values
]
B = 0.4


def inputs_of(per_token: bool = True) -> LossInputs:
    """Return the first draw with WPO weights on both sides of 1, where their clamp acts."""
    for seed in count():
        inputs = make(per_token=per_token, seed=seed)
        assert inputs.token_log_sum_sq is not None
        inputs = replace(inputs, token_log_sum_sq=inputs.token_log_sum_sq - 1)
        weights = wpo_weights(inputs)
        if min(weights) < 0.9 and max(weights) > 1.1:
            break
    return inputs


def wpo_weights(inputs: LossInputs) -> list[float]:
    policy, squares = token_lists(inputs, "token_logps"), token_lists(inputs, "token_log_sum_sq")
    means = [
        sum(a - b for a, b in zip(p, q, strict=True)) / max(len(p), 1)
        for p, q in zip(policy, squares, strict=True)
    ]
    return [math.exp(means[w] + means[v]) for w, v in pairs(inputs)]


def token_lists(inputs: LossInputs, name: str) -> list[list[float]]:
    found: list[list[float]] = [[] for _ in range(inputs.num_sequences)]
    values = getattr(inputs, name).tolist()
    for value, segment in zip(values, inputs.segments.tolist(), strict=True):
        found[segment].append(value)
    return found


@pytest.mark.parametrize(("name", "option", "value"), LISTED)
def test_no_option_is_ignored(name: str, option: str, value: object) -> None:
    """TRL's sigmoid drops label smoothing; TRL through Liger drops all of these."""
    inputs = inputs_of()
    plain, changed = LOSSES[name](inputs), LOSSES[name](inputs, **{option: value})
    assert changed.loss.isfinite()
    assert not torch.isclose(plain.loss, changed.loss, rtol=1e-6, atol=0)


def test_the_rows_that_list_them() -> None:
    """f-divergences only where the log-partition function cancels: in functions of the margin."""
    with_options = {name for name, spec in LOSSES.items() if "ld_alpha" in spec.defaults}
    scores = {name for name, spec in LOSSES.items() if "f_divergence" in spec.defaults}
    pointwise = "cal_dpo dpop dpo_shift apo_down apo_zero nca_pair bco_pair sppo_hard".split()
    assert with_options - scores == set(pointwise)
    margins = "sigmoid cdpo robust sigmoid_norm ipo hinge exo_pair discopop dpo_nll r_dpo"
    assert set(margins.split()) <= scores


# f-divergences.


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "rpo_distill"])
@pytest.mark.parametrize(
    ("divergence", "alpha"),
    [("reverse_kl", 0.5), ("forward_kl", 0.5), ("js", 0.5)]
    + [("alpha", a) for a in (0.0, 0.3, 1.0, -0.4)],
)
def test_divergences(name: str, divergence: str, alpha: float) -> None:
    inputs = inputs_of()
    tokens = inputs.token_logps.requires_grad_()
    hyper = {"beta": B, "f_divergence": divergence, "f_alpha": alpha}
    out = LOSSES[name](inputs, **hyper)
    assert inputs.rewards is not None
    rewards, expected, slopes = inputs.rewards.tolist(), [], [math.nan] * 6
    policy, reference = (token_lists(inputs, n) for n in ("token_logps", "ref_token_logps"))
    d = [sum(a) - sum(b) for a, b in zip(policy, reference, strict=True)]
    score, change = {
        "reverse_kl": (lambda x: x, lambda x: 1.0),
        "forward_kl": (lambda x: -math.exp(-x), lambda x: math.exp(-x)),
        "js": (lambda x: math.log(logistic(x)), lambda x: logistic(-x)),
        "alpha": (
            lambda x: (1 - math.exp(-alpha * x)) / alpha if alpha else x,
            lambda x: math.exp(-alpha * x),
        ),
    }[divergence]
    for w, v in pairs(inputs):
        u, gap = B * (score(d[w]) - score(d[v])), rewards[w] - rewards[v]
        value, slope = {
            "sigmoid": (softplus(-u), -logistic(-u)),
            "hinge": (max(0, 1 - u), -float(u < 1)),
            "rpo_distill": ((gap - u) ** 2, -2 * (gap - u)),
        }[name]
        expected.append(value)
        slopes[w], slopes[v] = B * slope * change(d[w]) / 3, -B * slope * change(d[v]) / 3
    assert out.values.tolist() == pytest.approx(expected, rel=1e-11, abs=1e-14)
    slopes[4] = math.nan
    got = coefficients(out.loss, tokens, inputs)
    assert got == pytest.approx(slopes, rel=1e-10, abs=1e-14, nan_ok=True)


def test_small_alpha_tends_to_the_reverse_kl() -> None:
    """``(1 - exp(-a D)) / a`` loses every digit at a = 1e-12 unless expm1 computes it."""
    inputs = inputs_of()
    near = LOSSES["sigmoid"](inputs, f_divergence="alpha", f_alpha=1e-12).loss
    torch.testing.assert_close(near, LOSSES["sigmoid"](inputs).loss, rtol=1e-10, atol=0)


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_divergences_do_not_overflow(divergence: str) -> None:
    """exp(1e4) overflows, and a clamp would stop the gradient of the worst response."""
    inputs = make((0, 0), lengths=(1, 1), preferred=(True, False), dtype=torch.float32)
    tokens = torch.full((2,), -2e4).requires_grad_()
    reference = torch.tensor([-1e4, -2e4])
    inputs = replace(inputs, token_logps=tokens, ref_logps=reference)
    out = LOSSES["sigmoid"](inputs, f_divergence=divergence)
    chosen, rejected = coefficients(out.loss, tokens, inputs)
    assert out.loss.isfinite()
    assert math.isfinite(chosen) and math.isfinite(rejected)
    assert chosen < 0


def test_wpo_is_a_switch_or_a_name() -> None:
    for wrong in (0, 1, "yes", None):
        with pytest.raises(InputError, match="`wpo`"):
            LOSSES["sigmoid"](make(), wpo=wrong)


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
@pytest.mark.parametrize("ratio", [-45.0, -200.0, -1e4])
@pytest.mark.parametrize("name", ["ipo", "rpo_distill", "rpo_pessimistic"])
def test_squared_divergences_stay_finite(name: str, ratio: float, divergence: str) -> None:
    """e^70 squared overflows fp32, and the square of e^20's gradient overflows a norm."""
    inputs = make((0, 0), lengths=(1, 1), preferred=(True, False), dtype=torch.float32)
    tokens = torch.full((2,), -2e4).requires_grad_()
    inputs = replace(inputs, token_logps=tokens, ref_logps=torch.tensor([-2e4 - ratio, -2e4]))
    out = LOSSES[name](inputs, f_divergence=divergence)
    (grad,) = torch.autograd.grad(out.loss, tokens)
    assert out.loss.isfinite()
    assert ((100 * grad).square() * 1e8).isfinite().all(), "a global norm can sum them"
    assert grad[0] < 0 < grad[1]


def test_the_exponential_is_exact_up_to_its_cap() -> None:
    ratio = -(MAX_EXPONENT - 1)
    inputs = make((0, 0), lengths=(1, 1), preferred=(True, False))
    tokens = torch.tensor([-100.0, -1.0], dtype=torch.float64)
    inputs = replace(inputs, token_logps=tokens, ref_logps=tokens - torch.tensor([ratio, 0.0]))
    out = LOSSES["sigmoid"](inputs, beta=1.0, f_divergence="forward_kl")
    assert out.loss.item() == pytest.approx(math.exp(-ratio) - 1, rel=1e-12)


# Length desensitisation.


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("name", ["sigmoid", "apo_zero"])
def test_length_desensitisation(alpha: float, reference: bool, name: str) -> None:
    inputs = inputs_of()
    tokens = inputs.token_logps.requires_grad_()
    out = LOSSES[name](inputs, beta=B, ld_alpha=alpha, ld_reference=reference)
    policy, ref = token_lists(inputs, "token_logps"), token_lists(inputs, "ref_token_logps")
    values, grads = [], [0.0] * tokens.numel()
    starts = [0]
    for tokens_of in policy:
        starts.append(starts[-1] + len(tokens_of))
    for w, v in pairs(inputs):
        shared = min(len(policy[w]), len(policy[v]))
        d = {}
        for s in (w, v):
            weights = [1.0 if t < shared else alpha for t in range(len(policy[s]))]
            theirs = weights if reference else [1.0] * len(weights)
            d[s] = sum(a * b for a, b in zip(weights, policy[s], strict=True)) - sum(
                a * b for a, b in zip(theirs, ref[s], strict=True)
            )
        if name == "sigmoid":
            u = B * (d[w] - d[v])
            value, cw, cl = softplus(-u), -B * logistic(-u), B * logistic(-u)
        else:
            a, b = logistic(B * d[w]), logistic(B * d[v])
            value, cw, cl = 1 - a + b, -B * a * (1 - a), B * b * (1 - b)
        values.append(value)
        for s, c in ((w, cw), (v, cl)):
            for t in range(len(policy[s])):
                grads[starts[s] + t] = c / 3 * (1 if t < shared else alpha)
    assert out.values.tolist() == pytest.approx(values, rel=1e-12)
    (got,) = torch.autograd.grad(out.loss, tokens)
    assert got.tolist() == pytest.approx(grads, rel=1e-11, abs=1e-15)


def test_what_length_desensitisation_needs() -> None:
    summed = make()
    with pytest.raises(InputError, match="`sigmoid` needs `ref_token_logps`"):
        LOSSES["sigmoid"](summed, ld_alpha=0.5)
    per_token = replace(make(per_token=True), token_logps=summed.token_logps)
    one = LOSSES["sigmoid"](summed, ld_alpha=0.5, ld_reference=False).loss
    other = LOSSES["sigmoid"](per_token, ld_alpha=0.5, ld_reference=False).loss
    torch.testing.assert_close(one, other)


# Weights.


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "nca_pair"])
def test_weights_of_wpo(name: str) -> None:
    inputs = inputs_of()
    tokens = inputs.token_logps.requires_grad_()
    weights = wpo_weights(inputs)
    assert min(weights) < 1 < max(weights)
    plain = LOSSES[name](inputs)
    for wpo, expected in ((True, weights), ("clamped", [min(1.0, w) for w in weights])):
        out = LOSSES[name](inputs, wpo=wpo)
        values = [w * x for w, x in zip(expected, plain.values.tolist(), strict=True)]
        assert out.values.tolist() == pytest.approx(values, rel=1e-12)
        # The weight has no gradient: a pair's gradient is the plain one times the weight.
        pull = torch.tensor(expected, dtype=torch.float64)
        (got,) = torch.autograd.grad(out.loss, tokens)
        (exact,) = torch.autograd.grad((pull * plain.values).mean(), tokens, retain_graph=True)
        torch.testing.assert_close(got, exact)


def test_what_wpo_needs() -> None:
    inputs = replace(make(), token_log_sum_sq=None)
    with pytest.raises(InputError, match="`ipo` needs `token_log_sum_sq`"):
        LOSSES["ipo"](inputs, wpo=True)
    assert LOSSES["ipo"](inputs).loss.isfinite()


# Label smoothing.


@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_norm", "ipo", "hinge", "r_dpo", "aot"])
def test_label_smoothing_mixes_in_the_swapped_pair(name: str) -> None:
    inputs = make((0, 0), lengths=(3, 4), preferred=(True, False), per_token=True)
    assert inputs.preferred is not None
    swapped = replace(inputs, preferred=~inputs.preferred)
    plain, other = LOSSES[name](inputs).loss, LOSSES[name](swapped).loss
    out = LOSSES[name](inputs, label_smoothing=0.2).loss
    torch.testing.assert_close(out, 0.8 * plain + 0.2 * other)


def test_bad_options() -> None:
    for hyper in (
        {"f_divergence": "kl"},
        {"ld_alpha": -0.1},
        {"ld_alpha": 1.5},
        {"wpo": "yes"},
        {"label_smoothing": 1.1},
    ):
        with pytest.raises(InputError, match=next(iter(hyper))):
            LOSSES["sigmoid"](make(per_token=True), **hyper)
    for smoothing in (0.5, -0.1):
        with pytest.raises(InputError, match="label_smoothing"):
            LOSSES["robust"](make(), label_smoothing=smoothing)
    for smoothing in (0.0, 1.0):
        with pytest.raises(InputError, match="label_smoothing"):
            LOSSES["exo_pair"](make(), label_smoothing=smoothing)
    with pytest.raises(InputError, match="shift"):
        LOSSES["dpo_shift"](make(), shift=1.2)
    with pytest.raises(InputError, match="minimum"):
        LOSSES["rpo_pessimistic"](make(), minimum="all")


def test_options_with_shuffled_sequences() -> None:
    inputs = inputs_of()
    shuffled = permuted(inputs, [3, 0, 5, 4, 2, 1])
    hyper = {"ld_alpha": 0.4, "wpo": True, "f_divergence": "js", "label_smoothing": 0.1}
    one, other = LOSSES["sigmoid"](inputs, **hyper), LOSSES["sigmoid"](shuffled, **hyper)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-13, atol=0)
