"""Properties of every row of the table."""

from __future__ import annotations

import inspect
import math
import re
import sys
from dataclasses import replace
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from rao_kernels import losses
from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES, LossInputs, meanings, reduce_units

from .cases import make, make_for, permuted, selected

NAMES = sorted(LOSSES)
HYPER = {
    "rao": [{"log_z0": 2.0}, {"log_z0": "auto"}]
    + [{"log_z0": 2.0, "prompt_term": term} for term in ("none", "grad", "eq7_literal")],
    "ipo": [{}, {"length_normalized": True}],
}
PRESETS = [(name, hyper) for name in NAMES for hyper in HYPER.get(name, [{}])]
# The gradient is not the value's derivative: factors stand without gradient.
STOPPED = {"cispo", "dft", "vespo"}
# A batch's own mean or order is part of the value: parts of a batch do not add up to it.
COUPLED = {"bco", "bnpo", "cpo", "kto", "tpo", "aot", "aot_unpaired"}
presets = pytest.mark.parametrize(("name", "hyper"), PRESETS)


def test_rows_describe_themselves() -> None:
    known = set(LossInputs.__dataclass_fields__)
    for name, spec in LOSSES.items():
        assert spec.name == name
        assert spec.paper
        assert spec.unit in ("prompt", "pair", "sequence", "token")
        assert {part for need in spec.needs for part in need.split("|")} <= known
        settings = [pair for pairs in spec.needed_unless.values() for pair in pairs]
        assert {hyper for hyper, _ in settings} <= set(spec.defaults)
        assert set(spec.needed_unless) <= set(spec.needs)
        assert set(spec.optional) <= known


@pytest.mark.parametrize("name", NAMES)
def test_rows_cite_their_source(name: str) -> None:
    """Year and arXiv id agree, the function names the paper, and defaults have an origin."""
    spec = LOSSES[name]
    doc = inspect.getdoc(spec.terms) or ""
    assert "Returns:\n" in doc
    if arxiv := re.search(r"arXiv (\d\d)(\d\d)\.(\d{5})", spec.paper):
        assert f"20{arxiv[1]}" in spec.paper.partition(", ")[0]
        assert arxiv[0] in doc
    assert bool(spec.defaults) == bool(spec.defaults_from)


@pytest.mark.parametrize("name", NAMES)
def test_modules_list_their_losses_by_title(name: str) -> None:
    """A search for the name of a paper finds the file."""
    module = sys.modules[LOSSES[name].terms.__module__]
    title = " ".join(LOSSES[name].title.split())
    for doc in (module.__doc__, losses.__doc__):
        assert title in " ".join((doc or "").split())
    assert f"(`{name}`)" in (module.__doc__ or "").replace("\n", " ")
    assert f"{module.__name__.rpartition('.')[2]}.py" in (losses.__doc__ or "")


@presets
@pytest.mark.parametrize("per_token", [False, True])
def test_gradcheck(name: str, hyper: dict[str, object], per_token: bool) -> None:
    if name in STOPPED:
        pytest.skip("has factors without gradient")
    inputs = make_for(name, per_token=per_token)
    tokens = inputs.token_logps.clone().requires_grad_()

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        return LOSSES[name](replace(inputs, token_logps=tokens), **hyper).loss

    assert torch.autograd.gradcheck(loss, tokens, fast_mode=True)


@presets
def test_dtypes_and_metrics(name: str, hyper: dict[str, object]) -> None:
    exact = LOSSES[name](make_for(name), **hyper)
    assert exact.loss.dtype == torch.float64
    assert exact.loss.dim() == 0
    for dtype in (torch.float32, torch.bfloat16):
        inputs = make_for(name, dtype=dtype)
        inputs.token_logps.requires_grad_()
        out = LOSSES[name](inputs, **hyper)
        assert out.loss.dtype == out.values.dtype == torch.float32
        assert out.loss.requires_grad
        assert out.metrics.keys() == exact.metrics.keys()
        for value in out.metrics.values():
            assert value.dim() == 0
            assert value.dtype == torch.float32
            assert value.isfinite()
            assert not value.requires_grad


@presets
def test_order_of_sequences_does_not_matter(name: str, hyper: dict[str, object]) -> None:
    inputs = make_for(name)
    shuffled = permuted(inputs, [3, 0, 5, 4, 2, 1])
    one, other = LOSSES[name](inputs, **hyper), LOSSES[name](shuffled, **hyper)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(one.metrics, other.metrics, rtol=1e-13, atol=1e-13)


@presets
def test_normalizer_makes_parts_add_up(name: str, hyper: dict[str, object]) -> None:
    """Two micro-batches under the whole's normaliser sum to the whole."""
    if name in COUPLED:
        pytest.skip("depends on the batch as a whole")
    hyper = {**hyper, "log_z0": 2.0} if name == "rao" else hyper
    whole = make_for(name)
    parts = [part(whole, [0, 1]), part(whole, [2, 3, 4, 5])]
    spec = LOSSES[name]
    units = sum(spec.count_units(p) for p in parts)
    torch.testing.assert_close(units, spec.count_units(whole))
    total = sum(spec(p, normalizer=units, **hyper).loss for p in parts)
    torch.testing.assert_close(total, spec(whole, **hyper).loss, rtol=1e-13, atol=0)
    same = spec(whole, normalizer=float(units), **hyper).loss
    torch.testing.assert_close(same, spec(whole, **hyper).loss, rtol=1e-13, atol=0)


def part(inputs: LossInputs, sequences: list[int]) -> LossInputs:
    rows = torch.isin(inputs.segments, torch.tensor(sequences))
    changes = selected(inputs, torch.tensor(sequences), rows)
    present, changes["groups"] = torch.unique(changes["groups"], return_inverse=True)
    asked = torch.isin(inputs.ref_reward_groups, present)
    changes["ref_rewards"] = inputs.ref_rewards[asked]
    changes["ref_reward_groups"] = torch.searchsorted(present, inputs.ref_reward_groups[asked])
    return replace(
        inputs,
        segments=inputs.segments[rows] - sequences[0],
        num_sequences=len(sequences),
        **changes,
    )


@presets
def test_extreme_log_ratios_give_a_step(name: str, hyper: dict[str, object]) -> None:
    """At a log-ratio of 1e4 nats a step is clipped, not set to zero by an infinite norm: summed in
    fp32 over 1e8 parameters, each with the gradient of the token times 100, the squares are finite.
    """
    if hyper.get("prompt_term") == "eq7_literal":
        pytest.skip("exp(DX) of the printed equation overflows by itself")
    for sign in (1.0, -1.0):
        inputs = make_for(name, dtype=torch.float32, lengths=(1,) * 6)
        ratio = sign * torch.tensor([1e4, -1e4, 0.0, 1e4, -1e4, 0.0])
        tokens = torch.full((6,), -1e4).requires_grad_()
        inputs = replace(inputs, token_logps=tokens, ref_logps=-1e4 - ratio)
        inputs = replace(inputs, old_token_logps=-1e4 - ratio)
        out = LOSSES[name](inputs, **hyper)
        assert out.loss.isfinite()
        (grad,) = torch.autograd.grad(out.loss, tokens)
        assert ((100 * grad).square() * 1e8).isfinite().all()


POLICY = [name for name, spec in LOSSES.items() if "on_policy" in spec.defaults]


@pytest.mark.parametrize("name", POLICY)
def test_a_ratio_needs_what_it_is_taken_to(name: str) -> None:
    """Without old log-probs every ratio would be 1: REINFORCE under another name."""
    inputs = replace(make_for(name, per_token=True), old_token_logps=None)
    with pytest.raises(InputError, match="`old_token_logps`.*policy that sampled.*on_policy=True"):
        LOSSES[name](inputs)
    LOSSES[name](inputs, on_policy=True)
    with pytest.raises(InputError, match="`old_token_logps`.*None with on_policy=True"):
        LOSSES[name](make_for(name, per_token=True), on_policy=True)


def test_every_loss_with_a_ratio_is_among_them() -> None:
    assert {"ppo", "grpo", "dr_grpo", "dapo", "bnpo", "gspo", "luspo", "rloo"} <= set(POLICY)
    assert {"gmpo", "cispo", "sapo", "vespo"} <= set(POLICY)
    readers = {name for name, spec in LOSSES.items() if "old_token_logps" in spec.needs}
    assert readers == set(POLICY)


@pytest.mark.parametrize("name", NAMES)
def test_each_hyperparameter_has_a_meaning_with_its_choices(name: str) -> None:
    spec = LOSSES[name]
    found = meanings(spec)
    assert list(found) == list(spec.defaults)
    hints = get_type_hints(inspect.unwrap(spec.terms))
    for key, text in found.items():
        assert len(text) > 3 and text != key
        assert not re.match("(what|which|whether|how) ", text), key
        for choice in choices_of(hints.get(key)):
            assert f'"{choice}"' in text, (key, choice)


def choices_of(hint: object) -> list[str]:
    if get_origin(hint) is Literal:
        return [choice for choice in get_args(hint) if isinstance(choice, str)]
    return [choice for part in get_args(hint) for choice in choices_of(part)]


@pytest.mark.parametrize("name", ["sppo"])
def test_rewards_that_are_no_probabilities_are_refused(name: str) -> None:
    assert LOSSES[name].probabilities == ("rewards",)
    inputs = make_for(name)
    for bad in (9.5, -0.1, math.nan):
        rewards = torch.tensor([0.0, 0.5, 1.0, 0.2, 0.3, bad])
        with pytest.raises(InputError, match="`rewards`.*probabilities from 0 to 1"):
            LOSSES[name](replace(inputs, rewards=rewards))


@presets
def test_autocast_changes_nothing(name: str, hyper: dict[str, object]) -> None:
    inputs = make_for(name, dtype=torch.float32)
    expected = LOSSES[name](inputs, **hyper)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = LOSSES[name](inputs, **hyper)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(out.values, expected.values)


@presets
def test_never_waits_for_a_device(name: str, hyper: dict[str, object]) -> None:
    """Meta tensors have no values: reading one on the host raises."""
    inputs, spec = make_for(name, per_token=True), LOSSES[name]
    tensors = {
        field: value.to("meta")
        for field in LossInputs.__dataclass_fields__
        if isinstance(value := getattr(inputs, field), torch.Tensor)
    }
    tensors["token_logps"].requires_grad_()
    meta = LossInputs(**tensors, num_sequences=inputs.num_sequences)
    terms = spec.terms(meta, **spec.bind(hyper))
    loss = reduce_units(terms.values, spec.weights(meta), None)
    (grad,) = torch.autograd.grad(loss, tensors["token_logps"])
    assert grad.shape == inputs.token_logps.shape
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()


@presets
def test_inputs_it_does_not_need_are_ignored(name: str, hyper: dict[str, object]) -> None:
    spec, inputs = LOSSES[name], make_for(name)
    optional = {
        field: None
        for field in ("rewards", "prompt_logps", "ref_prompt_logps", "ref_logps", "groups")
        if not any(field in need.split("|") for need in spec.required_inputs(hyper))
        and field not in spec.optional
        and not (name == "rao" and field == "groups")
    }
    expected, out = spec(inputs, **hyper), spec(replace(inputs, **optional), **hyper)
    assert torch.equal(out.loss, expected.loss)


@pytest.mark.parametrize("name", NAMES)
def test_missing_inputs_are_named(name: str) -> None:
    spec = LOSSES[name]
    for need in spec.required_inputs({}):
        fields = need.split("|")
        with pytest.raises(InputError, match=f"`{fields[0]}`.*`{name}` needs `{fields[0]}`"):
            spec(replace(make_for(name), **dict.fromkeys(fields)))


@pytest.mark.parametrize("name", NAMES)
def test_unknown_hyperparameters_are_rejected(name: str) -> None:
    spec = LOSSES[name]
    with pytest.raises(InputError, match="`gama`") as error:
        spec(make_for(name), gama=1.0)
    assert all(known in str(error.value) for known in spec.defaults)


def test_bad_values_are_rejected() -> None:
    for name, hyper in [
        ("rao", {"beta": 0.0}),
        ("rao", {"beta": -0.1}),
        ("rao", {"log_z0": "automatic"}),
        ("rao", {"log_z0": math.inf}),
        ("rao", {"prompt_term": "detach"}),
        ("sigmoid", {"beta": math.nan}),
        ("ipo", {"tau": 0}),
        ("simpo", {"beta": -1.0}),
    ]:
        with pytest.raises(InputError, match=next(iter(hyper))):
            LOSSES[name](make(), **hyper)
    for wrong in (0, torch.tensor(0.0), torch.ones(3)):
        with pytest.raises(InputError, match="normalizer"):
            LOSSES["sft"](make(), normalizer=wrong)
    for name, hyper in [
        ("dpo_nll", {"sft_weight": -1.0}),
        ("cal_dpo", {"calibration_weight": -1.0}),
        ("dpop", {"dpop_lambda": -1.0}),
        ("orpo", {"lam": -1.0}),
        ("rpo_pessimistic", {"gamma": -1.0}),
        ("vespo", {"lam": (0.0, 1.0)}),
        ("vespo", {"k": (1.0, -1.0)}),
        ("bco_pair", {"delta": torch.zeros(3, 1)}),
    ]:
        with pytest.raises(InputError, match=next(iter(hyper))):
            LOSSES[name](make_for(name), **hyper)


def test_the_reference_is_a_constant() -> None:
    inputs = make(per_token=True)
    reference = inputs.ref_token_logps.requires_grad_()
    inputs.token_logps.requires_grad_()
    LOSSES["rao"](replace(inputs, ref_token_logps=reference), log_z0=1.0).loss.backward()
    assert reference.grad is None


def test_no_grad_first_does_not_spoil_the_gradient() -> None:
    inputs = make()
    inputs.token_logps.requires_grad_()
    with torch.no_grad():
        LOSSES["rao"](inputs)
    assert LOSSES["rao"](inputs).loss.requires_grad


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"token_logps": torch.zeros(2, 10)}, r"`token_logps`.*\[2, 10\]"),
        ({"segments": torch.zeros(3, dtype=torch.int64)}, r"`segments`.*N = 20"),
        ({"segments": torch.zeros(20)}, "`segments`.*int64"),
        ({"segments": torch.arange(20).flip(0)}, "`segments`.*ascending"),
        ({"segments": torch.arange(20)}, "`segments`.*0 to 19"),
        ({"rewards": torch.zeros(5)}, r"`rewards`.*S = 6.*\[5\]"),
        ({"rewards": [1.0] * 6}, "`rewards`.*list"),
        ({"ref_token_logps": torch.zeros(6)}, "`ref_token_logps`.*N = 20"),
        ({"advantages": torch.zeros(7)}, r"`advantages`.*\[S\] or \[N\]"),
        ({"reward_ensemble": torch.zeros(3, 5)}, "`reward_ensemble`"),
        ({"rewards": torch.zeros(6, device="meta")}, "`rewards`.*device"),
        ({"num_sequences": 0}, "`num_sequences`"),
        ({"groups": torch.tensor([0, 0, 2, 2, 3, 3])}, r"`groups`.*dense from 0, got \[0, 2, 3\]"),
        ({"groups": torch.tensor([0, 0, -1, -1, 1, 1])}, r"`groups`.*\[-1, 0, 1\]"),
        ({"groups": torch.tensor([0, 0, 1, 1, 9, 9])}, "`groups`.*return_inverse=True"),
        ({"groups": torch.zeros(6)}, "`groups`.*int64.*got torch.float32"),
    ],
)
def test_wrong_inputs(change: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        replace(make(), **change)


def test_shapes_that_fit() -> None:
    replace(make(), advantages=torch.zeros(20), values=torch.zeros(6))
    samples = {"ref_rewards": torch.zeros(9), "ref_reward_groups": torch.zeros(9).long()}
    replace(make(), reward_ensemble=torch.zeros(4, 6), **samples)
