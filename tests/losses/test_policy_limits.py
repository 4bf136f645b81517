"""Properties of all policy gradients: limits, symmetries, extremes, bad values."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES

from .cases import GROUPED, make, permuted
from .policy_loops import (
    LEVELS,
    advantages_of,
    cases,
    check,
    check_close,
    extreme,
    gradient,
    grao_inputs,
    ppo_inputs,
    tiny,
)


def test_at_ratio_one_every_surrogate_has_the_gradient_of_reinforce() -> None:
    inputs = replace(cases(), old_token_logps=None)
    reference = gradient("dapo", inputs, on_policy=True)[1]
    for name in ("cispo", "vespo", "bnpo"):
        assert gradient(name, inputs, on_policy=True)[1] == pytest.approx(reference, rel=1e-12)
    reference = gradient("grpo", inputs, on_policy=True)[1]
    for name in ("gspo", "gmpo", "sapo"):
        assert gradient(name, inputs, on_policy=True)[1] == pytest.approx(reference, rel=1e-12)


@pytest.mark.parametrize("name", sorted({*LEVELS, "gmpo", "cispo", "sapo", "vespo"}))
def test_rewards_up_to_shift_and_scale(name: str) -> None:
    inputs = cases()
    assert inputs.rewards is not None
    shifted = gradient(name, replace(inputs, rewards=inputs.rewards + 7))
    check_close(shifted, gradient(name, inputs))
    doubled = gradient(name, replace(inputs, rewards=2 * inputs.rewards), **tiny(name))
    factor = 2 if name in ("dr_grpo", "rloo") else 1
    once = gradient(name, inputs, **tiny(name))
    check_close(doubled, (factor * once[0], [factor * g for g in once[1]]))


def test_sign_of_the_advantage() -> None:
    inputs = replace(cases(), old_token_logps=None, advantages=torch.randn(6, dtype=torch.float64))
    assert inputs.advantages is not None
    flipped = replace(inputs, advantages=-inputs.advantages)
    for name in ("grpo", "gspo", "rloo", "cispo", "gmpo"):
        one, other = (gradient(name, each, on_policy=True) for each in (inputs, flipped))
        assert one[1] == pytest.approx([-g for g in other[1]], rel=1e-12)


@pytest.mark.parametrize("name", sorted({*LEVELS, "gmpo", "cispo", "sapo", "vespo"}))
def test_groups_whose_rewards_are_all_equal_have_no_gradient(name: str) -> None:
    """Exactly 0: the mean of three times 0.1 is not 0.1, which eps would magnify."""
    for dtype in (torch.float64, torch.float32):
        inputs = cases(dtype=dtype)
        equal = replace(inputs, rewards=torch.full((6,), 0.1, dtype=dtype))
        hyper = {} if name in ("dr_grpo", "rloo") else {"eps": 1e-12}
        assert gradient(name, equal, **hyper) == (0.0, [0.0] * 20)


@pytest.mark.parametrize("name", sorted({*LEVELS, "gmpo", "cispo", "sapo", "vespo"}))
@pytest.mark.parametrize("kl_beta", [0.0, 0.1])
def test_extreme_ratios_are_finite(name: str, kl_beta: float) -> None:
    if name == "rloo" and kl_beta:
        pytest.skip("its penalty is part of the reward")
    inputs = extreme([1e4, -1e4, 1e4, -1e4, 1e4, -1e4], [1.0, 1.0, -1.0, -1.0, 0.0, 0.0])
    loss, found = gradient(name, inputs, kl_beta=kl_beta)
    assert math.isfinite(loss)
    assert all(map(math.isfinite, found))


def test_values_per_sequence_and_lengths_zero() -> None:
    inputs = cases()
    for name in ("grpo", "gspo", "luspo", "rloo", "gmpo", "sapo", "dr_grpo", "bnpo"):
        values = LOSSES[name](inputs).values
        assert values.shape == (6,)
        assert values[4] == 0
    empty = make(GROUPED, lengths=(0,) * 6, per_token=True)
    for name in sorted({*LEVELS, "gmpo", "cispo", "sapo", "vespo", "grao"}):
        assert LOSSES[name](empty).loss == 0


@pytest.mark.parametrize("name", ["grpo", "rloo", "grao", "gspo"])
def test_order_of_sequences(name: str) -> None:
    inputs = grao_inputs()
    shuffled = permuted(inputs, [3, 0, 5, 4, 2, 1])
    torch.testing.assert_close(
        LOSSES[name](inputs).loss, LOSSES[name](shuffled).loss, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("grpo", {"clip_low": -0.1}),
        ("grpo", {"clip_low": 1.5}),
        ("dapo", {"clip_high": math.nan}),
        ("gmpo", {"clip_low": -1.0}),
        ("ppo", {"dual_clip": 0.5}),
        ("ppo", {"value_coef": -1.0}),
        ("ppo", {"value_clip": 0.0}),
        ("grpo", {"kl_beta": -0.1}),
        ("grpo", {"eps": 0.0}),
        ("dr_grpo", {"max_completion_length": 0}),
        ("sapo", {"temperature_neg": 0.0}),
        ("vespo", {"k": 2.0}),
    ],
)
def test_bad_values(name: str, hyper: dict[str, Any]) -> None:
    inputs = ppo_inputs() if name == "ppo" else cases()
    with pytest.raises(InputError, match=f"`{next(iter(hyper))}`"):
        LOSSES[name](inputs, **hyper)


def test_gradients_flow_to_nothing_else() -> None:
    """Advantages, old and reference log-probs are constants."""
    inputs = ppo_inputs()
    constants: list[Tensor] = []
    for name in ("advantages", "old_token_logps", "ref_token_logps", "returns", "old_values"):
        constants.append(getattr(inputs, name).clone().requires_grad_())
        inputs = replace(inputs, **{name: constants[-1]})
    tokens = inputs.token_logps.clone().requires_grad_()
    inputs = replace(inputs, token_logps=tokens)
    for name in ("ppo", "grpo", "vespo", "sapo"):
        loss = LOSSES[name](inputs, kl_beta=0.1).loss
        found = torch.autograd.grad(loss, [tokens, *constants], allow_unused=True)
        assert found[0] is not None
        assert all(g is None for g in found[1:])


@pytest.mark.parametrize("name", sorted({*LEVELS, "gmpo", "cispo", "sapo", "vespo", "ppo"}))
def test_a_reference_alone_is_no_penalty(name: str) -> None:
    inputs = replace(cases(), advantages=torch.randn(6, dtype=torch.float64))
    bare = replace(inputs, ref_token_logps=None, ref_logps=None)
    assert gradient(name, inputs) == gradient(name, bare)
    with pytest.raises(InputError, match="needs `ref"):
        LOSSES[name](bare, kl_beta=0.1)


@pytest.mark.parametrize("name", sorted({*LEVELS, "gmpo", "cispo", "sapo", "vespo"}))
def test_advantages_win_over_rewards(name: str) -> None:
    inputs = cases()
    estimated = torch.tensor(advantages_of(name, inputs), dtype=torch.float64)
    given = replace(inputs, advantages=estimated, rewards=inputs.rewards + torch.arange(6) ** 2)
    check(gradient(name, given), gradient(name, inputs))
    per_token = replace(given, advantages=estimated[inputs.segments])
    check(gradient(name, per_token), gradient(name, inputs))
    # Given, they need neither rewards nor groups.
    bare = replace(given, rewards=None, groups=None)
    assert gradient(name, bare) == gradient(name, given)
    with pytest.raises(InputError, match="`groups`"):
        LOSSES[name](replace(inputs, groups=None))
