"""The public names and their signatures, which callers outside this repository rely on."""

from __future__ import annotations

import importlib
import inspect

import pytest

import rao_kernels
from rao_kernels import SequenceBatch
from rao_kernels.losses import LOSSES, LossInputs

OP_PARAMETERS = [
    "hidden",
    "weight",
    "targets",
    "bias",
    "logit_scale",
    "logit_softcap",
    "ignore_index",
]
SIGNATURES = {
    "linear_logprobs": [*OP_PARAMETERS, "options"],
    "linear_logprobs_and_entropy": [*OP_PARAMETERS, "options"],
    "linear_token_stats": [*OP_PARAMETERS, "stats", "options"],
    "rao_loss": [
        "hidden", "weight", "batch", "rewards", "ref_logps", "ref_prompt_logps",
        "beta", "log_z0", "prompt_term", "normalizer", "options",
    ],
    "fused_loss": [
        "name_or_function", "hidden", "weight", "batch", "inputs", "hyper", "normalizer", "options"
    ],
    "sequence_logps": ["hidden", "weight", "batch", "options"],
    "sequence_and_prompt_logps": ["hidden", "weight", "batch", "options"],
}  # fmt: skip
DEFAULTS = {
    "linear_logprobs": {"logit_scale": 1.0, "logit_softcap": None, "ignore_index": -100},
    "rao_loss": {"beta": 0.1, "log_z0": 50.0, "prompt_term": "detached", "normalizer": None},
}


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(getattr(rao_kernels, name)).parameters)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    parameters = _parameters(name)
    assert set(parameters) == set(SIGNATURES[name])
    positional = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional] == SIGNATURES[name][: len(positional)]
    assert len(positional) in (3, 4)


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name: str) -> None:
    parameters = _parameters(name)
    for key, value in DEFAULTS[name].items():
        assert parameters[key].default == value, key


def test_all_is_complete_and_documented() -> None:
    assert set(SIGNATURES) <= set(rao_kernels.__all__)
    assert sorted(rao_kernels.__all__) == rao_kernels.__all__
    for name in rao_kernels.__all__:
        assert inspect.getdoc(getattr(rao_kernels, name)), name


def test_engine_options() -> None:
    assert set(rao_kernels.EngineOptions.__annotations__) == {
        "grad_tolerance", "workspace_bytes", "vocab_order", "backend", "word_order",
    }  # fmt: skip


def test_sequence_batch() -> None:
    for name, extra in (("from_padded", "attention_mask"), ("from_packed", "cu_seqlens")):
        found = list(inspect.signature(getattr(SequenceBatch, name)).parameters)
        assert found == ["input_ids", "completion_mask", extra, "prefix_length", "groups"]


def test_losses() -> None:
    assert {"rao", "sigmoid", "ipo", "simpo", "sft"} <= set(LOSSES)
    first = list(inspect.signature(LossInputs).parameters)[:3]
    assert first == ["token_logps", "segments", "num_sequences"]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("losses", ["LOSSES", "LossInputs", "bradley_terry_loss"]),
        ("hf", ["attach_fused_head", "detach_fused_head"]),
        ("train", ["RAOConfig", "RAOTrainer"]),
    ],
)
def test_submodules(module: str, names: list[str]) -> None:
    if module in ("hf", "train"):
        pytest.importorskip("transformers")
    found = importlib.import_module(f"rao_kernels.{module}")
    assert set(names) <= set(found.__all__)
