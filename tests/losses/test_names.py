"""Names of losses: keys, names of papers and other libraries, and typing errors."""

from __future__ import annotations

import re

import pytest

from rao_kernels.errors import InputError
from rao_kernels.losses import ALIASES, LOSSES
from rao_kernels.losses._names import EXPLAINED, NOT_OFFERED, spelled


def test_aliases_name_losses_and_no_loss_is_an_alias() -> None:
    assert set(ALIASES.values()) <= set(LOSSES)
    assert not set(ALIASES) & set(LOSSES)
    assert not (set(EXPLAINED) | NOT_OFFERED) & (set(LOSSES) | set(ALIASES))
    for name in (*ALIASES, *EXPLAINED, *NOT_OFFERED):
        assert spelled(name) == name


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("dpo", "sigmoid"),
        ("DPO", "sigmoid"),
        ("cdpo", "cdpo"),
        ("kto", "kto"),
        ("slic-hf", "slic"),
        ("SLiC_HF", "slic"),
        ("nemotron_rpo", "rpo_bwd_kl"),
        ("Cal-DPO", "cal_dpo"),
        ("Dr. GRPO", "dr_grpo"),
        ("A*-PO", "a2po"),
        ("k1.5", "kimi"),
        ("SimPO", "simpo"),
        ("iterative RPO", "dpo_nll"),
        ("provably robust DPO", "robust"),
        ("EXO-rw", "exo"),
        ("geo_mean", "gmpo"),
        ("chunked_nll", "sft"),
    ],
)
def test_names_of_the_field(name: str, key: str) -> None:
    assert LOSSES[name].name == LOSSES.find(name).name == key
    assert LOSSES.combine({name: 1.0}).parts[0][0].name == key


@pytest.mark.parametrize("name", sorted(NOT_OFFERED | set(EXPLAINED)))
def test_a_name_of_the_field_never_leads_to_another_loss(name: str) -> None:
    """No spelling of it gets a suggestion; every possible meaning is listed."""
    for spelling in (name, name.upper(), name.replace("_", "-")):
        with pytest.raises(InputError) as error:
            LOSSES.find(spelling)
        advice = str(error.value).rpartition("got ")[2]
        assert "Did you mean" not in advice
        assert "not offered" in advice or len(re.findall(r"'\w+' \(", advice)) >= 1


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("roa", "rao"),
        ("simp", "simpo"),
        ("cisppo", "cispo"),
        ("sigmiod", "sigmoid"),
        ("grop", "grpo"),
    ],
)
def test_typing_errors_are_understood(typed: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"`loss`.*Did you mean {meant!r}"):
        LOSSES.find(typed)


def test_every_title_is_a_name() -> None:
    """The title that the documentation shows can be typed as it stands."""
    for key, spec in LOSSES.items():
        assert LOSSES[spec.title] is spec, key
        assert LOSSES[spec.title.upper()] is spec, key


OTHER_LIBRARIES = {
    "TRL": """sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired
        apo_zero apo_down discopop sft sigmoid_norm kto apo_zero_unpaired simpo alphapo grpo
        dr_grpo dapo bnpo cispo sapo luspo vespo nll chunked_nll dft""",
    "LLaMA-Factory": "sigmoid hinge ipo orpo simpo",
    "axolotl": "dpo ipo orpo kto simpo grpo",
    "NeMo-Aligner": "dpo ipo rpo_sq rpo_bwd_kl rpo_fwd_kl",
    "verl": "gspo sapo geo_mean cispo",
}


@pytest.mark.parametrize("library", OTHER_LIBRARIES)
def test_names_of_other_libraries(library: str) -> None:
    for name in OTHER_LIBRARIES[library].split():
        assert name in LOSSES, name


def test_dpo_is_never_taken_for_another_loss() -> None:
    assert LOSSES.find("dpo") is LOSSES["sigmoid"]
    for typed in ("dop", "dpoo", "d-p-o"):
        with pytest.raises(InputError) as error:
            LOSSES.find(typed)
        assert "dpop" not in str(error.value).rpartition("got ")[2]


def test_keys_alone_are_iterated() -> None:
    assert "dpo" in LOSSES and "dpo" not in list(LOSSES)
    assert "xyz" not in LOSSES
