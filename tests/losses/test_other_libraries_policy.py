"""Policy gradients and preference losses against TRL's and Liger's code on the same numbers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rao_kernels.losses import LOSSES, LossInputs

from .. import seeds
from .cases import TRIPLES, make, pairs

BUDGET = 16
LENGTHS = (5, 1, 7, 3, 2, 4)


def peer(module: str) -> Any:
    name = module.partition(".")[0]
    return pytest.importorskip(module, reason=f"{name}, to compare with, is absent")


def policy_inputs(old: bool = True) -> LossInputs:
    inputs = make(TRIPLES, lengths=LENGTHS, per_token=True)
    draw = seeds.generator(7)
    advantages = torch.randn(6, generator=draw, dtype=torch.float64)
    inputs.token_logps.requires_grad_()
    kept = inputs.old_token_logps if old else None
    return replace(inputs, advantages=advantages, old_token_logps=kept)


def mask_of(inputs: LossInputs) -> Tensor:
    return torch.arange(int(inputs.lengths.max())) < inputs.lengths[:, None]


def padded(values: Tensor | None, inputs: LossInputs) -> Tensor | None:
    """Return ``[N]`` as ``[S, T]``, with arbitrary numbers at padding."""
    if values is None:
        return None
    mask = mask_of(inputs)
    return torch.full(mask.shape, -3.0, dtype=values.dtype).masked_scatter(mask, values)


def check(ours: Tensor, theirs: Tensor, tokens: Tensor, rtol: float = 1e-11) -> None:
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=rtol, atol=1e-13)
    grads = [torch.autograd.grad(loss, tokens)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(grads[0], grads[1].to(grads[0].dtype), rtol=rtol, atol=1e-13)


# Name and settings in the other library, and here.
POLICY: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "grpo": ("grpo", {}, "grpo", {}),
    "grpo-penalty": ("grpo", {"beta": 0.3}, "grpo", {"kl_beta": 0.3}),
    "grpo-delta": ("grpo", {"delta": 1.25}, "grpo", {"dual_clip": 1.25}),
    "dr_grpo": ("dr_grpo", {}, "dr_grpo", {"max_completion_length": BUDGET}),
    "dapo": ("dapo", {"high": 0.28}, "dapo", {}),
    "bnpo": ("bnpo", {}, "bnpo", {}),
    "gspo": ("grpo", {"level": "sequence"}, "gspo", {"clip_low": 0.2, "clip_high": 0.2}),
    "luspo": (
        "luspo",
        {"level": "sequence", "high": 0.05, "low": 0.03},
        "luspo",
        {"clip_low": 0.03, "clip_high": 0.05},
    ),
    # TRL and Liger clamp at epsilon_high itself.
    "cispo": ("cispo", {"high": 5.0}, "cispo", {}),
    "cispo-low": ("cispo", {"high": 1.1}, "cispo", {"clip_high": 0.1}),
    "sapo": ("sapo", {}, "sapo", {}),
    "vespo": ("vespo", {}, "vespo", {}),
    "vespo-penalty": ("vespo", {"beta": 0.1}, "vespo", {"kl_beta": 0.1}),
}
policies = pytest.mark.parametrize("case", POLICY)


def trl_trainer(logps: Tensor, **attributes: Any) -> SimpleNamespace:
    """Return a stub with the attributes that a trainer's `_compute_loss` reads."""
    accelerator = SimpleNamespace(
        num_processes=1,
        device="cpu",
        gather=lambda value: value,
        gather_for_metrics=lambda value: value,
        reduce=lambda value, reduction: value,
    )
    arguments = {
        "use_bias_correction_kl": False,
        "delta": None,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        "steps_per_generation": 1,
    }
    trainer = {
        "_get_per_token_logps_and_entropies": lambda *a, **k: (logps, logps.detach(), None),
        "args": SimpleNamespace(**{**arguments, "delta": attributes.pop("delta", None)}),
        "accelerator": accelerator,
        "model": SimpleNamespace(training=True),
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": BUDGET,
        "_entropy_bonus_enabled": False,
        "beta": 0.0,
    }
    return SimpleNamespace(**{**trainer, **attributes})


def trl_batch(inputs: LossInputs) -> dict[str, Any]:
    mask = mask_of(inputs).long()
    old, reference = inputs.old_token_logps, inputs.ref_token_logps
    batch = {
        "prompt_ids": torch.ones(6, 1, dtype=torch.int64),
        "prompt_mask": torch.ones(6, 1, dtype=torch.int64),
        "completion_ids": torch.ones_like(mask),
        "completion_mask": mask,
        "advantages": inputs.advantages,
        "old_per_token_logps": padded(old, inputs),
        "ref_per_token_logps": padded(reference, inputs),
        "num_items_in_batch": mask.sum(),
    }
    return {name: value for name, value in batch.items() if value is not None}


@policies
@pytest.mark.parametrize("old", [True, False])
def test_trl_grpo(case: str, old: bool) -> None:
    module = peer("trl.trainer.grpo_trainer")
    their_name, settings, name, hyper = POLICY[case]
    inputs = policy_inputs(old)
    logps = padded(inputs.token_logps, inputs)
    assert logps is not None
    trainer = trl_trainer(
        logps,
        loss_type=their_name,
        epsilon_low=settings.get("low", 0.2),
        epsilon_high=settings.get("high", 0.2),
        importance_sampling_level=settings.get("level", "token"),
        beta=settings.get("beta", 0.0),
        delta=settings.get("delta"),
        get_gamma_weights=module.GRPOTrainer.get_gamma_weights,
    )
    theirs = module.GRPOTrainer._compute_loss(trainer, None, trl_batch(inputs))
    if name == "sapo":  # TRL rounds its temperatures to fp32
        hyper = {**hyper, "temperature_neg": float(torch.tensor(1.05))}
    ours = LOSSES[name](inputs, on_policy=not old, **hyper).loss
    check(ours, theirs, inputs.token_logps)


def test_trl_gmpo() -> None:
    module = peer("trl.experimental.gmpo.gmpo_trainer")
    inputs = policy_inputs()
    logps = padded(inputs.token_logps, inputs)
    assert logps is not None
    trainer = trl_trainer(logps, epsilon_low=0.1, epsilon_high=0.15, beta=0.2)
    theirs = module.GMPOTrainer._compute_loss(trainer, None, trl_batch(inputs))
    ours = LOSSES["gmpo"](inputs, clip_low=0.1, clip_high=0.15, kl_beta=0.2).loss
    check(ours, theirs, inputs.token_logps)


def test_trl_rloo() -> None:
    module = peer("trl.trainer.rloo_trainer")
    inputs = policy_inputs()
    logps, old = padded(inputs.token_logps, inputs), padded(inputs.old_token_logps, inputs)
    assert logps is not None and old is not None
    trainer = trl_trainer(logps, epsilon_low=0.2, epsilon_high=0.2)
    batch = {**trl_batch(inputs), "old_logps": (old * mask_of(inputs)).sum(1)}
    theirs = module.RLOOTrainer._compute_loss(trainer, None, batch)
    check(LOSSES["rloo"](inputs).loss, theirs, inputs.token_logps)


@policies
def test_liger_grpo(case: str) -> None:
    function = peer("liger_kernel.chunked_loss.grpo_loss").LigerFusedLinearGRPOFunction
    their_name, settings, name, hyper = POLICY[case]
    inputs = policy_inputs()
    mask = mask_of(inputs).double()
    theirs, _ = function.ppo_loss_fn(
        padded(inputs.token_logps, inputs),
        mask,
        inputs.advantages,
        mask,
        ref_per_token_logps=padded(inputs.ref_token_logps, inputs),
        old_per_token_logps=padded(inputs.old_token_logps, inputs),
        epsilon_low=settings.get("low", 0.2),
        epsilon_high=settings.get("high", 0.2),
        beta=settings.get("beta", 0.0),
        delta=settings.get("delta"),
        loss_type=their_name,
        max_completion_length=BUDGET,
        importance_sampling_level=settings.get("level", "token"),
    )
    check(LOSSES[name](inputs, **hyper).loss, theirs, inputs.token_logps)


def test_liger_luspo_counts_padding_in_its_penalty() -> None:
    """The difference that the table documents: values at padding change Liger's loss."""
    function = peer("liger_kernel.chunked_loss.grpo_loss").LigerFusedLinearGRPOFunction
    inputs = policy_inputs()
    mask = mask_of(inputs).double()
    logps, reference = padded(inputs.token_logps, inputs), padded(inputs.ref_token_logps, inputs)
    assert reference is not None
    losses = []
    for shift in (0.0, 1.0):
        moved = reference + shift * (1 - mask)
        loss, _ = function.ppo_loss_fn(
            logps,
            mask,
            inputs.advantages,
            mask,
            ref_per_token_logps=moved,
            beta=0.1,
            loss_type="luspo",
            importance_sampling_level="sequence",
        )
        losses.append(loss.item())
    assert losses[0] != pytest.approx(losses[1])


# Preferences.


def preference_inputs(**options: Any) -> tuple[LossInputs, Tensor, Tensor]:
    """Return inputs, and the chosen and rejected sequences."""
    inputs = make(lengths=LENGTHS, **options)
    inputs.token_logps.requires_grad_()
    chosen, rejected = (torch.tensor(column) for column in zip(*pairs(inputs), strict=True))
    return inputs, chosen, rejected


def means(inputs: LossInputs) -> Tensor:
    return inputs.logps / inputs.lengths


def cpo_trainer(**attributes: Any) -> SimpleNamespace:
    defaults = {"alpha": 0.0, "beta": 0.4, "label_smoothing": 0.0, "simpo_gamma": 0.3}
    accelerator = SimpleNamespace(device="cpu")
    return SimpleNamespace(accelerator=accelerator, **{**defaults, **attributes})


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", ["cpo", "simpo", "alphapo"])
def test_trl_cpo(name: str, smoothing: float) -> None:
    module = peer("trl.experimental.cpo.cpo_trainer")
    inputs, chosen, rejected = preference_inputs()
    level = inputs.logps if name == "cpo" else means(inputs)
    trainer = cpo_trainer(
        loss_type="sigmoid" if name == "cpo" else "simpo",
        alpha=0.25 if name == "alphapo" else 0.0,
        label_smoothing=smoothing,
    )
    theirs = module.CPOTrainer.cpo_loss(trainer, level[chosen], level[rejected])[0].mean()
    hyper = {"sft_weight": 0.0} if name == "cpo" else {"gamma": 0.3}
    ours = LOSSES[name](inputs, beta=0.4, label_smoothing=smoothing, **hyper).loss
    check(ours, theirs, inputs.token_logps)


def test_trl_orpo() -> None:
    """Compare the odds-ratio part; the likelihood differs (see the table), and TRL's is fp32."""
    module = peer("trl.experimental.orpo.orpo_trainer")
    inputs, chosen, rejected = preference_inputs()
    level, trainer = means(inputs), cpo_trainer(beta=0.3)
    part = module.ORPOTrainer.odds_ratio_loss(trainer, level[chosen], level[rejected])[0]
    theirs = -level[chosen].mean() - part.mean()
    check(LOSSES["orpo"](inputs, lam=0.3).loss, theirs, inputs.token_logps, rtol=1e-5)


@pytest.mark.parametrize("normalized", [False, True])
def test_trl_tpo(normalized: bool) -> None:
    module = peer("trl.experimental.tpo.tpo_trainer")
    generator = seeds.generator()
    logits = torch.randn(6, 8, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(11, (6, 8), generator=generator)
    lengths = torch.tensor([3, 5, 2, 6, 1, 4])
    mask = torch.arange(8) >= 8 - lengths[:, None]
    trainer = trl_trainer(
        logits,
        tpo_alpha=0.7,
        tpo_l_gamma=0.3,
        label_smoothing=0.1,
        loss_type="tpo-l" if normalized else "sigmoid",
        beta=0.2,
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer.model = SimpleNamespace(training=False)
    batch = {"input_ids": ids, "attention_mask": mask.long(), "completion_mask": mask.long()}
    theirs = module.TPOTrainer._compute_loss(
        trainer, lambda **inputs: SimpleNamespace(logits=logits), batch, False
    )
    scored = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    # TRL's batch is chosen, rejected and gold of two prompts.
    inputs = LossInputs(
        token_logps=scored[mask[:, 1:]],
        segments=torch.repeat_interleave(lengths),
        num_sequences=6,
        groups=torch.tensor([0, 1, 0, 1, 0, 1]),
        preferred=torch.tensor([True, True, False, False, False, False]),
        gold=torch.tensor([False, False, False, False, True, True]),
    )
    hyper = {"length_normalized": normalized, "gamma": 0.3 if normalized else 0.0}
    ours = LOSSES["tpo"](inputs, beta=0.2, sft_weight=0.7, label_smoothing=0.1, **hyper).loss
    check(ours, theirs, logits, rtol=1e-6)


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_trl_kto(name: str) -> None:
    module = peer("trl.trainer.kto_trainer")
    inputs, _, _ = preference_inputs()
    assert inputs.kl_logps is not None
    mask = mask_of(inputs)
    scored = padded(inputs.token_logps, inputs)
    assert scored is not None
    scored = scored * mask
    trainer = trl_trainer(
        scored,
        loss_type=name,
        beta=0.3,
        desirable_weight=1.3,
        undesirable_weight=0.7,
        precompute_ref_logps=True,
        calculate_KL=name == "kto",
        _compute_kl_logps=lambda model, batch: inputs.kl_logps,
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer.model = SimpleNamespace(training=False)
    output = SimpleNamespace(log_probs=scored, entropy=scored, mean_logits=scored)
    whole = torch.cat([torch.zeros(6, 1, dtype=torch.bool), mask], 1).long()
    batch = {
        "input_ids": whole,
        "attention_mask": torch.ones_like(whole),
        "completion_mask": whole,
        "label": inputs.preferred,
        "ref_logps": inputs.ref_logps,
        "ref_KL_logps": inputs.ref_kl_logps,
    }
    theirs = module.KTOTrainer._compute_loss(trainer, lambda **inputs: output, batch, False)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    check(LOSSES[name](inputs, beta=0.3, **weights).loss, theirs, inputs.token_logps)


@pytest.mark.parametrize("name", ["cpo", "simpo", "orpo"])
def test_liger_pairs(name: str) -> None:
    module = peer(f"liger_kernel.chunked_loss.{name}_loss")
    inputs, chosen, rejected = preference_inputs()
    function = getattr(
        module, f"LigerFusedLinear{ {'simpo': 'SimPO'}.get(name, name.upper()) }Function"
    )
    level = inputs.logps if name == "cpo" else means(inputs)
    settings = {"gamma": 0.3} if name == "simpo" else {}
    target = torch.zeros(6, 1)
    theirs = function.preference_loss_fn(
        level[chosen], level[rejected], target, beta=0.4, **settings
    )
    loss = theirs[0]
    if name == "orpo":
        loss = loss - level[chosen].mean()
        ours = LOSSES["orpo"](inputs, lam=0.4).loss
    else:
        hyper = {"gamma": 0.3} if name == "simpo" else {"sft_weight": 0.0}
        ours = LOSSES[name](inputs, beta=0.4, **hyper).loss
    check(ours, loss, inputs.token_logps)


def test_liger_kto() -> None:
    module = peer("liger_kernel.chunked_loss.kto_loss")
    inputs, _, _ = preference_inputs()
    assert inputs.kl_logps is not None and inputs.ref_kl_logps is not None
    z0 = (inputs.kl_logps - inputs.ref_kl_logps).mean().clamp(min=0)
    function = module.LigerFusedLinearKTOFunction
    theirs, *_ = function.preference_loss_fn(
        inputs.logps, inputs.preferred, torch.zeros(6, 1), inputs.ref_logps, beta=0.3, kl=z0
    )
    check(LOSSES["kto"](inputs, beta=0.3).loss, theirs, inputs.token_logps)


def test_their_orpo_at_certainty() -> None:
    """At p = 1 the gradient of Liger's loss is NaN; ours is finite."""
    module = peer("liger_kernel.chunked_loss.orpo_loss")
    sure = torch.zeros(1, requires_grad=True)
    loss, *_ = module.LigerFusedLinearORPOFunction.preference_loss_fn(
        sure, torch.tensor([-1.0]), torch.zeros(2, 1)
    )
    (grad,) = torch.autograd.grad(loss, sure)
    assert not grad.isfinite().all()
