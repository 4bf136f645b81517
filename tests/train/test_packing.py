"""Packed micro-batches give the losses and gradients of padded ones, or are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rao_kernels.data import PreferenceDataset
from rao_kernels.errors import InputError
from rao_kernels.hf import attach_fused_head, check_packing
from rao_kernels.train import RAOTrainer
from tests import seeds
from tests.hf.models import tiny_model as family_model
from tests.train.rich import rich_dataset
from tests.train.test_trainer import trainer
from tests.train.tiny import tiny_model

Found = tuple[float, dict[str, Tensor]]


def masked(data: PreferenceDataset) -> PreferenceDataset:
    """Every third token of a response is not scored, as turns of a tool are not."""
    rows = [
        replace(row, masks=[torch.arange(len(ids)) % 3 != 1 for ids in row.responses])
        for row in data.rows
    ]
    return PreferenceDataset(rows)


def of_one_batch(run: RAOTrainer, prompts: int) -> Found:
    """Loss and gradients of a policy off its reference."""
    with torch.no_grad():
        for index, parameter in enumerate(run.model.parameters()):
            seeds.seed_torch(index)
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    batch = run.data_collator([run.train_dataset[i] for i in range(prompts)])
    assert ("position_ids" in batch) == run.args.packing
    loss = run.compute_loss(run.model, batch)
    loss.backward()
    named = run.model.named_parameters()
    return float(loss.detach()), {n: p.grad for n, p in named if p.grad is not None}


@pytest.mark.parametrize(
    ("loss", "attention"),
    [
        *(("sft", "sdpa"), ("rao", "sdpa"), ("sigmoid", "sdpa"), ("kto", "sdpa")),
        *(("dro_value", "sdpa"), ("grpo", "sdpa"), ("sft", "eager"), ("kto", "eager")),
    ],
)
def test_loss_and_gradients_are_those_of_padding(tmp_path: Path, loss: str, attention: str) -> None:
    found = []
    for packing in (False, True):
        model = tiny_model()
        model.set_attn_implementation(attention)
        data = masked(rich_dataset(4))
        run = trainer(tmp_path, data, model, loss=loss, packing=packing, ref_per_token=True)
        found.append(of_one_batch(run, 4))
    (padded, expected), (packed, gradients) = found
    assert packed == pytest.approx(padded, rel=1e-5, abs=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.norm()) + 1e-6
        assert float((gradients[name] - gradient).norm()) < 1e-4 * scale, name


def test_training_packed_is_training_padded(tmp_path: Path) -> None:
    weights = []
    for packing in (False, True):
        run = trainer(tmp_path / str(packing), loss="sft", packing=packing)
        run.train()
        weights.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in tiny_model().parameters()])
    moved = weights[0] - start
    assert float((weights[1] - weights[0]).norm()) < 1e-4 * float(moved.norm())


@pytest.mark.parametrize("family", ["recurrent_gemma", "falcon_h1", "mpt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_models_that_mix_sequences_are_refused(family: str, dtype: torch.dtype) -> None:
    settings = {"attn_implementation": "eager"}
    model = attach_fused_head(family_model(family, dtype, **settings), check_parity="off")
    with pytest.raises(InputError, match="`packing`.*tells packed sequences apart"):
        check_packing(model)
    assert model.training


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mixtral", "gpt2", "phi"])
def test_models_that_tell_sequences_apart(family: str) -> None:
    check_packing(attach_fused_head(family_model(family, attn_implementation="eager")))


@pytest.mark.parametrize("window", [2, 4])
def test_a_sliding_window_moves_with_the_sequence(window: int) -> None:
    settings: dict[str, Any] = {"sliding_window": window, "attn_implementation": "eager"}
    check_packing(attach_fused_head(family_model("gemma2", **settings)))


def test_the_trainer_checks_the_model_and_the_value_model(tmp_path: Path) -> None:
    class Leaky(nn.Module):
        """Adds the state before to each state, whatever the positions are."""

        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, hidden: Tensor) -> Tensor:
            return self.layer(hidden + hidden.roll(1, dims=1))

    model = tiny_model()
    model.model.layers[0].mlp = Leaky(model.model.layers[0].mlp)
    with pytest.raises(InputError, match="`packing`.*LlamaForCausalLM"):
        trainer(tmp_path, model=model, packing=True, loss="sft")
    policy = attach_fused_head(tiny_model())
    check_packing(policy, tiny_model())
    with pytest.raises(InputError, match="`packing`"):
        check_packing(policy, model)
