"""Weighted sums of losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES

from .cases import make


def test_sum_of_means_over_their_own_units() -> None:
    inputs = make()
    both = LOSSES.combine({"sigmoid": 0.8, "sft": 1.5})
    out = both(inputs, beta=0.4)
    parts = [LOSSES["sigmoid"](inputs, beta=0.4), LOSSES["sft"](inputs)]
    torch.testing.assert_close(out.loss, 0.8 * parts[0].loss + 1.5 * parts[1].loss)
    torch.testing.assert_close(out.values[:3], 0.8 * parts[0].values)
    torch.testing.assert_close(out.values[3:], 1.5 * parts[1].values)
    torch.testing.assert_close(out.metrics["loss/sigmoid"], parts[0].loss)
    assert out.metrics.keys() >= {"loss/sft", "rewards/margins", "nll_loss"}
    assert both.unit == "pair"
    assert both.name == "0.8 sigmoid + 1.5 sft"


def test_hyperparameters_are_shared_by_name_or_given_to_one() -> None:
    inputs = make()
    both = LOSSES.combine({"sigmoid": 1.0, "nca_pair": 1.0})

    def expected(one: float, other: float) -> torch.Tensor:
        first, second = LOSSES["sigmoid"], LOSSES["nca_pair"]
        return first(inputs, beta=one).loss + second(inputs, beta=other).loss

    torch.testing.assert_close(both(inputs).loss, expected(0.1, 0.01))
    torch.testing.assert_close(both(inputs, beta=0.3).loss, expected(0.3, 0.3))
    one = both(inputs, **{"beta": 0.3, "nca_pair.beta": 0.5})
    torch.testing.assert_close(one.loss, expected(0.3, 0.5))
    bound = both.bind({"nca_pair.beta": 0.5})
    assert "beta" not in bound
    assert bound["ld_alpha"] == 1.0
    torch.testing.assert_close(both(inputs, **bound).loss, expected(0.1, 0.5))


def test_parts_of_a_batch_add_up() -> None:
    inputs, both = make(lengths=(2, 3, 1, 4, 2, 2)), LOSSES.combine({"ipo": 0.5, "sft": 1.0})
    units = both.count_units(inputs)
    assert units.tolist() == [3, 8]
    whole = both(inputs, normalizer=units)
    torch.testing.assert_close(whole.loss, both(inputs).loss)
    torch.testing.assert_close(both(inputs, normalizer=2 * units).loss, whole.loss / 2)


def test_what_it_needs() -> None:
    both = LOSSES.combine({"sft": 1.0, "rao": 1.0, "sigmoid": 1.0})
    needs = both.required_inputs({"prompt_term": "none"})
    assert "prompt_logps" not in needs
    assert {"rewards", "preferred", "ref_logps|ref_token_logps"} <= set(needs)
    assert set(both.required_inputs({"sigmoid.wpo": True})) > set(needs)
    with pytest.raises(InputError, match="`rao` needs `rewards`"):
        both(replace(make(), rewards=None))


def test_each_part_is_bound_by_itself() -> None:
    both = LOSSES.combine({"rao": 1.0, "simpo": 0.1})
    (rao, own), (simpo, other) = both.bound_parts({"rao.beta": 0.5, "log_z0": 3.0})
    assert (rao.name, own["beta"], own["log_z0"]) == ("rao", 0.5, 3.0)
    assert (simpo.name, other["beta"]) == ("simpo", 2.0)
    by_alias = LOSSES.combine({"dpo": 1.0, "sft": 1.0}).bound_parts({"DPO.beta": 0.7})
    assert by_alias[0][1]["beta"] == 0.7
    assert LOSSES["rao"].bound_parts({"beta": 0.5})[0][1] == LOSSES["rao"].bind({"beta": 0.5})


def test_auto_of_a_part_is_taken_at_its_own_beta() -> None:
    inputs = make()
    assert inputs.rewards is not None
    inputs = replace(inputs, rewards=inputs.rewards + 4)
    both = LOSSES.combine({"rao": 1.0, "sft": 0.0})
    out = both(inputs, **{"rao.beta": 0.5, "log_z0": "auto"})
    expected = LOSSES["rao"](inputs, beta=0.5, log_z0="auto")
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.metrics["rao/log_z0"], expected.metrics["rao/log_z0"])


def test_beside_rewards_the_preferred_are_named() -> None:
    """Without labels the likelihood of rejected responses would be raised too."""
    both, inputs = LOSSES.combine({"rao": 1.0, "sft": 0.1}), make(preferred=None)
    with pytest.raises(InputError, match="`preferred`.*every response, give ones"):
        both(inputs)
    both(replace(inputs, preferred=torch.ones(6, dtype=torch.bool)))
    LOSSES["sft"](inputs)


def test_a_hyperparameter_of_a_part_is_given_once() -> None:
    both = LOSSES.combine({"sigmoid": 1.0, "sft": 1.0})
    with pytest.raises(InputError, match="each hyperparameter of a part once"):
        both.bind({"sigmoid.beta": 0.3, "dpo.beta": 0.5})


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -0.1, None, "1", True])
def test_weights_are_finite_numbers(weight: object) -> None:
    with pytest.raises(InputError, match="`weights`.*a finite weight of at least 0 for 'sft'"):
        LOSSES.combine({"sft": weight})  # type: ignore[dict-item]


def test_wrong_arguments() -> None:
    both = LOSSES.combine({"sigmoid": 1.0, "sft": 1.0})
    with pytest.raises(InputError, match="`gama`"):
        both(make(), gama=1.0)
    with pytest.raises(InputError, match="`sft.beta`"):
        both(make(), **{"sft.beta": 1.0})
    with pytest.raises(InputError, match="one per loss"):
        both(make(), normalizer=3.0)
    with pytest.raises(InputError, match="`weights`.*'dppo'.*not offered"):
        LOSSES.combine({"dppo": 1.0})
    with pytest.raises(InputError, match="each loss once"):
        LOSSES.combine({"dpo": 1.0, "sigmoid": 1.0})
    with pytest.raises(InputError, match="at least one"):
        LOSSES.combine({})
