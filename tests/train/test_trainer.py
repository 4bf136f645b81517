"""The trainer against plain logits and against itself cut into other micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import TrainerCallback

from rao_kernels.errors import DataError, InputError, OneSidedTargetsWarning
from rao_kernels.losses import LOSSES, LossInputs
from rao_kernels.train import RAOConfig, RAOTrainer, checkpoints
from tests import seeds
from tests.train.tiny import tiny_model, tiny_rows, tiny_tokenizer

PAIRS = [
    {"prompt": f"ask {i}", "chosen": "yes" * (1 + i % 3), "rejected": "no" * (1 + i % 2)}
    for i in range(7)
]


def config(folder: Path, **changes: Any) -> RAOConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "prefix_length": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": seeds.shifted(42),
    }
    return RAOConfig(**settings | changes)


def trainer(folder: Path, rows: Any = None, model: Any = None, **changes: Any) -> RAOTrainer:
    extra = {key: changes.pop(key) for key in ("eval_dataset", "peft_config") if key in changes}
    callbacks = changes.pop("callbacks", ())
    return RAOTrainer(
        tiny_model() if model is None else model,
        args=config(folder, **changes),
        train_dataset=tiny_rows(7) if rows is None else rows,
        processing_class=tiny_tokenizer(),
        callbacks=callbacks,
        **extra,
    )


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.steps.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )


def one_batch(run: RAOTrainer, prompts: int | None = None) -> dict[str, Any]:
    """The first prompts as one micro-batch, with the mask and the groups that a loop finds."""
    rows = run.train_dataset.rows[:prompts]
    batch = run.data_collator([run.train_dataset[i] for i in range(len(rows))])
    mask, groups = torch.zeros_like(batch["input_ids"], dtype=torch.bool), []
    for group, row in enumerate(rows):
        for response in row.responses:
            start = len(row.prompt)
            mask[len(groups), start : start + len(response)] = True
            groups.append(group)
    return batch | {"completion_mask": mask, "groups": torch.tensor(groups)}


def dense_inputs(model: nn.Module, batch: dict[str, Any], reference: nn.Module) -> LossInputs:
    """Inputs of a loss from full logits, without the package's ops, batches or cache."""

    def scores(lm: nn.Module) -> Tensor:
        logits = lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logps = logits.double().log_softmax(-1)[:, :-1]
        return logps.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]

    completion = batch["completion_mask"][:, 1:]
    prompt = batch["attention_mask"][:, 1:].bool() & ~completion
    own = scores(model)
    with torch.no_grad():
        ref = scores(reference)
    return LossInputs(
        token_logps=own[completion],
        segments=completion.nonzero()[:, 0],
        num_sequences=len(own),
        ref_logps=(ref * completion).sum(-1),
        prompt_logps=(own * prompt).sum(-1).detach(),
        ref_prompt_logps=(ref * prompt).sum(-1),
        **{key: batch[key] for key in ("rewards", "preferred", "groups") if key in batch},
    )


@pytest.mark.parametrize(
    ("loss", "rows", "per_token"),
    [
        ("rao", None, False),
        ("rao", None, True),
        ("sigmoid", None, False),
        ("sigmoid", PAIRS, True),
        ("simpo", PAIRS, False),
        ("sft", None, False),
    ],
)
def test_gradient_is_that_of_plain_logits(
    tmp_path: Path, loss: str, rows: Any, per_token: bool
) -> None:
    """The whole path (tokens, cache, head, segments, loss) from a policy off its reference."""
    gradients = Gradients()
    run = trainer(
        tmp_path,
        rows,
        loss=loss,
        per_device_train_batch_size=16,
        ref_per_token=per_token,
        callbacks=[gradients],
    )
    with torch.no_grad():
        for index, parameter in enumerate(run.model.parameters()):
            seeds.seed_torch(index)
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    policy = tiny_model()
    policy.load_state_dict(run.model.state_dict())
    batch = one_batch(run)
    expected = LOSSES[loss](dense_inputs(policy, batch, tiny_model()), **run.hyper)
    expected.loss.backward()
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(
            gradients.steps[0][name], parameter.grad, rtol=2e-4, atol=1e-6, msg=name
        )


@pytest.mark.parametrize("loss", ["rao", "sigmoid", "sft"])
def test_gradient_does_not_depend_on_the_micro_batch(tmp_path: Path, loss: str) -> None:
    """Seven prompts with 1 to 3 responses: windows of 4 and 3 prompts, cut in three ways."""
    runs = []
    for size, windows in ((4, 1), (2, 2), (1, 4)):
        gradients = Gradients()
        run = trainer(
            tmp_path / f"{size}",
            tiny_rows(7, responses=(2, 3, 4)),
            loss=loss,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=windows,
            callbacks=[gradients],
        )
        run.train()
        losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        runs.append((losses, gradients.steps))
    for losses, steps in runs[1:]:
        assert losses == pytest.approx(runs[0][0], rel=1e-4)
        assert len(steps) == len(runs[0][1]) == 2
        for step, expected in zip(steps, runs[0][1], strict=True):
            for name, gradient in expected.items():
                torch.testing.assert_close(step[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_evaluation_does_not_depend_on_the_micro_batch(tmp_path: Path) -> None:
    found = []
    for size in (1, 2, 5):
        run = trainer(
            tmp_path / f"{size}",
            eval_dataset=tiny_rows(5, responses=(1, 3, 2)),
            per_device_eval_batch_size=size,
            token_stats=True,
        )
        run.train()
        metrics = run.evaluate()
        found.append({key: value for key, value in metrics.items() if "per_second" not in key})
        del found[-1]["eval_runtime"]
        del found[-1]["eval_rewards/accuracies"]
    for metrics in found[1:]:
        assert metrics == pytest.approx(found[0], rel=1e-3, abs=1e-5)
    assert found[0]["eval_loss"] == pytest.approx(found[0]["eval_rao/mse"], rel=1e-5)


def test_model_gets_ids_and_masks_and_the_loss_gets_unrounded_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path, [{"prompt": "ask", "responses": ["yes"], "rewards": [0.123456789]}])
    seen: dict[str, Any] = {}
    forward, loss = run.model.forward, run.compute_loss

    def spy_forward(**kwargs: Any) -> Any:
        seen["kwargs"] = kwargs
        return forward(**kwargs)

    def spy_loss(model: nn.Module, inputs: dict[str, Tensor], **kwargs: Any) -> Any:
        seen["inputs"] = inputs
        return loss(model, inputs, **kwargs)

    monkeypatch.setattr(run.model, "forward", spy_forward)
    monkeypatch.setattr(run, "compute_loss", spy_loss)
    run.train()
    tensors = {key: value for key, value in seen["kwargs"].items() if isinstance(value, Tensor)}
    assert set(tensors) == {"input_ids", "attention_mask", "logp_targets", "logp_grad_mask"}
    assert not any(value.is_floating_point() for value in tensors.values())
    assert "labels" not in seen["inputs"]
    assert torch.equal(seen["inputs"]["rewards"], torch.tensor([0.123456789]))
    reference = run.train_dataset.references[0]
    assert torch.equal(seen["inputs"]["ref_logps"], reference.responses)


def test_metrics_and_token_statistics(tmp_path: Path) -> None:
    run = trainer(tmp_path, per_device_train_batch_size=7, token_stats=True)
    batch = one_batch(run, 7)
    logits = tiny_model()(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).logits
    rows, targets = batch["completion_mask"][:, 1:], batch["input_ids"][:, 1:]
    logps = logits[:, :-1].log_softmax(-1)
    run.train()
    logged = run.state.log_history[0]
    entropy = -(logps.exp() * logps).sum(-1)[rows].mean()
    top1 = (logps.argmax(-1) == targets)[rows].double().mean()
    assert logged["entropy"] == pytest.approx(entropy.item(), rel=1e-5)
    assert logged["mean_token_accuracy"] == pytest.approx(top1.item())
    for name in ("chosen", "rejected", "margins"):
        assert logged[f"rewards/{name}"] == pytest.approx(0.0, abs=1e-5)
    assert {"logps/chosen", "logps/rejected", "rao/mse", "grad_norm"} <= set(logged)


def test_log_z0_is_fitted_once_and_kept(tmp_path: Path) -> None:
    rows = tiny_rows(7)
    run = trainer(tmp_path, rows, save_strategy="steps", save_steps=2)
    means = [sum(row["rewards"]) / len(row["rewards"]) for row in rows]  # type: ignore[arg-type, call-overload]
    fitted = sum(means) / len(means) / 0.1
    assert run.hyper["log_z0"] == pytest.approx(fitted)
    run.train()
    folder = tmp_path / "checkpoint-2"
    state = checkpoints.read_state(folder)
    assert state["log_z0"] == run.hyper["log_z0"]
    checkpoints.write_state(folder, state | {"log_z0": 4.0})
    checkpoints.mark_complete(folder)
    again = trainer(tmp_path, rows)
    again.train(resume_from_checkpoint=str(folder))
    assert again.hyper["log_z0"] == 4.0
    assert trainer(tmp_path, log_z0=50).hyper["log_z0"] == 50.0


def test_targets_of_one_sign_warn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(OneSidedTargetsWarning, match="log_z0=50"):
        trainer(tmp_path, log_z0=50).train()
    assert "target log-ratios (nats): 0% -50.00" in capsys.readouterr().out


def test_prompt_gradient_only_where_asked(tmp_path: Path) -> None:
    """With "grad" the gradient is that of the whole sequence, so it differs from "detached"."""
    found = {}
    for term in ("detached", "grad", "none"):
        gradients = Gradients()
        trainer(tmp_path / term, prompt_term=term, callbacks=[gradients]).train()
        found[term] = gradients.steps[0]["model.norm.weight"]
    torch.testing.assert_close(found["detached"], found["none"], rtol=1e-3, atol=1e-6)
    assert not torch.allclose(found["detached"], found["grad"], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("before", [False, True], ids=["peft_config", "PeftModel"])
def test_reference_of_a_fresh_adapter_is_the_base_model(tmp_path: Path, before: bool) -> None:
    adapter = LoraConfig(r=2, target_modules="all-linear")
    plain = trainer(tmp_path)
    model = get_peft_model(tiny_model(), adapter) if before else tiny_model()
    run = trainer(tmp_path, model=model, peft_config=None if before else adapter)
    for own, base in zip(run.train_dataset.references, plain.train_dataset.references, strict=True):
        torch.testing.assert_close(own.responses, base.responses)
    assert len(list((tmp_path / "ref_cache").iterdir())) == 1, "base and adapter share the key"
    untouched = {n: p.clone() for n, p in run.model.named_parameters() if not p.requires_grad}
    run.train()
    assert run._scorer is not None and run._scorer.start is None, "no copy is kept"
    assert abs(run.state.log_history[3]["rao/implicit_mean"]) > 1e-4, "the adapter is on"
    for name, parameter in run.model.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, untouched[name])


def test_ref_model(tmp_path: Path) -> None:
    run = RAOTrainer(
        tiny_model(0),
        tiny_model(1),
        config(tmp_path),
        train_dataset=tiny_rows(3),
        processing_class=tiny_tokenizer(),
    )
    other = trainer(tmp_path / "other", tiny_rows(3), tiny_model(1))
    for own, base in zip(run.train_dataset.references, other.train_dataset.references, strict=True):
        torch.testing.assert_close(own.responses, base.responses)


def test_dropout_is_off(tmp_path: Path) -> None:
    model = tiny_model()
    model.model.layers[0].self_attn.attention_dropout = 0.5
    model.model.layers[0].mlp.add_module("extra", nn.Dropout(0.5))
    run = trainer(tmp_path, model=model)
    assert run.model.model.layers[0].self_attn.attention_dropout == 0.0
    assert run.model.model.layers[0].mlp.extra.p == 0.0


def test_new_evaluation_data(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert run.evaluate(tiny_rows(3))["eval_loss"] > 0
    both = run.evaluate({"a": tiny_rows(3), "b": tiny_rows(2)})
    assert {"eval_a_loss", "eval_b_loss"} <= set(both)
    run.train()
    with pytest.raises(InputError, match="changed the reference"):
        run.evaluate(tiny_rows(4))


def test_bad_use(tmp_path: Path) -> None:
    several = config(tmp_path)
    several._n_gpu = 2
    with pytest.raises(InputError, match="torchrun --nproc_per_node 2"):
        RAOTrainer(tiny_model(), None, several, processing_class=tiny_tokenizer())
    with pytest.raises(DataError, match="no rewards, which the loss 'rao' needs"):
        trainer(tmp_path, PAIRS)
    with pytest.raises(DataError, match="no record is left for the loss 'sigmoid'"):
        trainer(tmp_path, tiny_rows(2, responses=(1,)), loss="sigmoid")
    with pytest.raises(DataError, match="no reference cache for this run"):
        trainer(tmp_path / "none", ref_cache="require")
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(InputError, match="incomplete or no checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_bf16_autocast_keeps_log_ratios_at_zero(tmp_path: Path) -> None:
    """The reference is scored under the run's own precision."""
    run = trainer(tmp_path, bf16=True, per_device_eval_batch_size=2)
    run.train()
    assert abs(run.state.log_history[0]["rao/implicit_mean"]) < 2e-3


@pytest.mark.parametrize("bf16", [False, True])
def test_tolerance_follows_the_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    run = trainer(tmp_path, tiny_rows(3), bf16=bf16)
    forward, options = run.model.forward, {}

    def spy(**kwargs: Any) -> Any:
        options.update(kwargs["engine_options"])
        return forward(**kwargs)

    monkeypatch.setattr(run.model, "forward", spy)
    run.train()
    assert options["grad_tolerance"] == (2.0**-9 if bf16 else 0.0)
