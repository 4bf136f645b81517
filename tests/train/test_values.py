"""DRO's two networks: gradients, joint training, and the value head beside the saved policy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForTokenClassification

from rao_kernels.errors import InputError
from rao_kernels.fused import scoring_of
from rao_kernels.hf import attach_fused_head, attach_value_head
from rao_kernels.losses import LOSSES
from rao_kernels.train import RAOTrainer
from tests import seeds
from tests.train.test_trainer import Gradients, one_batch, trainer
from tests.train.tiny import save_tiny, tiny_model, tiny_rows

TAU = 0.5


@pytest.fixture(params=["head", "model"])
def value_model(request: Any, tmp_path: Path) -> str:
    return "head" if request.param == "head" else str(save_tiny(tmp_path / "value", 3))


def run_of(folder: Path, value_model: str, **changes: Any) -> RAOTrainer:
    settings = {"loss": "dro_value", "loss_kwargs": {"tau": TAU}, "value_model": value_model}
    return trainer(folder, **settings | changes)


def disturb(module: nn.Module) -> None:
    """Move weights off zero, and the policy off the reference."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            seeds.seed_torch(index)
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


def step_by_hand(model: Any, batch: dict[str, Any]) -> Tensor:
    """DRO's loss in float64: (r - V - tau D)^2 / 2, V at each prompt's last token."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    trunk = model.model(input_ids=ids, attention_mask=mask)[0]
    logits = nn.functional.linear(trunk, model.lm_head.weight)
    logps = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    ratios = (logps * batch["completion_mask"][:, 1:]).sum(-1) - batch["ref_logps"]
    head = model.value_head
    if head.linear is not None:
        values = head.linear(trunk)[..., 0]
    else:
        values = head.model.score(head.model.model(input_ids=ids, attention_mask=mask)[0])[..., 0]
    last = batch["completion_mask"].int().argmax(1) - 1
    prompt_values = values[torch.arange(len(ids)), last]
    return (0.5 * (batch["rewards"] - prompt_values - TAU * ratios).square()).mean()


def test_gradients_of_policy_and_value_are_those_of_dro(tmp_path: Path, value_model: str) -> None:
    steps = Gradients()
    run = run_of(tmp_path, value_model, per_device_train_batch_size=7, callbacks=[steps])
    disturb(run.model)
    batch = one_batch(run, 7)
    exact = copy.deepcopy(run.model).double()
    loss = step_by_hand(exact, batch)
    loss.backward()
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    expected = {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
    assert any("value_head" in name for name in expected)
    assert steps.steps[0].keys() == expected.keys()
    for name, gradient in expected.items():
        error = (steps.steps[0][name] - gradient).norm() / gradient.norm()
        assert float(error) < 2e-4, name


def test_values_learn_the_rewards(tmp_path: Path, value_model: str) -> None:
    """With a small tau the policy hardly counts, and the values alone lower the loss."""
    rows = [{**row, "rewards": [3.0 for _ in row["responses"]]} for row in tiny_rows(7)]
    settings = {"num_train_epochs": 8, "learning_rate": 0.02, "loss_kwargs": {"tau": 1e-3}}
    run = run_of(tmp_path, value_model, rows=rows, **settings)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(4.5, rel=0.1), "values begin at 0"
    assert losses[-1] < 0.1 * losses[0]


def test_the_saved_policy_is_without_the_value_head(tmp_path: Path, value_model: str) -> None:
    run = run_of(tmp_path / "run", value_model)
    run.train()
    run.save_model()
    own = run.model.value_head.state_dict()
    saved = load_file(tmp_path / "run" / "value_head.safetensors")
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name]) for name in own)
    for folder in (tmp_path / "run", tmp_path / "direct"):
        if folder.name == "direct":
            run.model.save_pretrained(folder)
        loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not report["unexpected_keys"] and not report["missing_keys"]
        assert torch.equal(loaded.lm_head.weight, run.model.lm_head.weight)


def test_values_are_restored_on_resume(tmp_path: Path, value_model: str) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    whole = run_of(tmp_path, value_model, **settings)
    whole.train()
    resumed = run_of(tmp_path, value_model, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    after = dict(resumed.model.named_parameters())
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(after[name], parameter), name


def test_the_best_checkpoint_brings_its_values(tmp_path: Path) -> None:
    found = set()
    for greater in (True, False):
        run = run_of(
            tmp_path / str(greater),
            "head",
            rows=tiny_rows(4),
            eval_dataset=tiny_rows(4),
            num_train_epochs=2,
            save_strategy="epoch",
            eval_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="loss",
            greater_is_better=greater,
        )
        run.train()
        best = Path(str(run.state.best_model_checkpoint))
        found.add(best.name)
        saved = load_file(best / "value_head.safetensors")
        for name, value in run.model.value_head.state_dict().items():
            assert torch.equal(saved[name], value)
    assert found == {"checkpoint-2", "checkpoint-4"}, "one of them is not the last"


def test_a_value_model_without_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`value_model`: expected 'head' for the loss 'rao'"):
        trainer(tmp_path, value_model="somewhere")
    with pytest.raises(InputError, match="`value_model`: expected a folder"):
        run_of(tmp_path, str(tmp_path / "none"))


def test_another_value_model_is_another_run(tmp_path: Path, value_model: str) -> None:
    run_of(tmp_path, value_model, save_strategy="epoch").train()
    other = str(save_tiny(tmp_path / "other", 4))
    with pytest.raises(InputError, match="value_model is"):
        run_of(tmp_path, other).train(resume_from_checkpoint=True)


def test_values_of_tokens(tmp_path: Path) -> None:
    """PPO reads the value of each state before a token; DRO that before the first one."""
    run = run_of(tmp_path, "head")
    disturb(run.model.value_head)
    batch = one_batch(run, 4)
    sequences = batch["sequences"]
    found = {}
    for name, hyper in (("ppo", {}), ("dro_value", {})):
        scoring = scoring_of(LOSSES[name], hyper)
        outputs = run.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            **scoring.head_inputs(sequences),
            logp_stats=scoring.model_stats,
        )
        found[name] = scoring.loss_inputs_of(sequences, outputs, {}).values
        every = outputs.token_values
    assert found["ppo"].shape == sequences.response_rows.shape
    assert torch.equal(found["ppo"], every.flatten()[sequences.response_rows])
    firsts = sequences.response_segments.diff(prepend=torch.tensor([-1])) == 1
    assert torch.equal(found["dro_value"], found["ppo"][firsts])


def test_only_a_model_with_one_output_gives_values() -> None:
    policy = attach_fused_head(tiny_model())
    ids = torch.arange(6)[None]
    with pytest.raises(InputError, match="`logp_stats`.*attach_value_head"):
        policy(input_ids=ids, logp_targets=ids, logp_stats=("token_values",))
    two = LlamaForTokenClassification(copy.copy(tiny_model().config))
    with pytest.raises(InputError, match="`value_model`.*num_labels=1"):
        attach_value_head(policy, two)
    attach_value_head(policy)
    head = policy.value_head
    assert attach_value_head(policy).value_head is head
    out = policy(input_ids=ids, logp_targets=ids, logp_stats=("token_values", "entropy"))
    assert out.token_values.dtype == torch.float32 and out.entropy is not None
    assert not out.token_values.any()


def test_a_bf16_policy_has_fp32_values() -> None:
    policy = attach_value_head(attach_fused_head(tiny_model(dtype=torch.bfloat16)))
    assert {p.dtype for p in policy.value_head.parameters()} == {torch.float32}
