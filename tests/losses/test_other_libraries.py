"""Pair losses against the code of TRL and Liger on the same numbers, and documented differences.

Their own methods run, on a stub of the trainer around them: the arithmetic of the loss is theirs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rao_kernels import SequenceBatch, fused_loss
from rao_kernels.losses import LOSSES, LossInputs

from .. import seeds
from .cases import pairs

P, T, B = 3, 9, 0.3
PROMPT = 3
LENGTHS = (5, 1, 3, 2, 6, 4)


def pair_inputs(scale: float = 1.0) -> LossInputs:
    """Return inputs with chosen responses first, as in TRL's batches; log-probs in fp32."""
    generator = seeds.generator(5)
    count = sum(LENGTHS)

    def logps() -> Tensor:
        return -3 * scale * torch.rand(count, generator=generator)

    return LossInputs(
        token_logps=logps().requires_grad_(),
        ref_token_logps=logps(),
        segments=torch.repeat_interleave(torch.tensor(LENGTHS)),
        num_sequences=2 * P,
        groups=torch.arange(P).repeat(2),
        preferred=torch.arange(2 * P) < P,
        token_log_sum_sq=-torch.rand(count, generator=generator) - 1,
    )


def padded(values: Tensor, inputs: LossInputs) -> Tensor:
    """Return ``[2 P, T - 1]``, shifted: entry t belongs to the token at t + 1."""
    rows = torch.zeros(2 * P, T - 1)
    starts = torch.tensor([0, *LENGTHS]).cumsum(0)[inputs.segments]
    place = torch.arange(len(values)) - starts + PROMPT - 1
    return rows.index_put((inputs.segments, place), values)


def trl_dpo(inputs: LossInputs, **settings: Any) -> Tensor:
    """Run `DPOTrainer._compute_loss` of TRL on these log-probs."""
    trl = pytest.importorskip("trl.trainer.dpo_trainer", reason="TRL, to compare with, is absent")
    mask = torch.zeros(2 * P, T, dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        mask[row, PROMPT : PROMPT + length] = 1
    extra = torch.zeros(2 * P, T - 1)

    def outputs(logps: Tensor) -> SimpleNamespace:
        squares = padded(inputs.require("token_log_sum_sq"), inputs)
        return SimpleNamespace(
            log_probs=padded(logps, inputs),
            entropy=extra,
            mean_logits=extra,
            is_top1=extra.bool(),
            log_sum_sq_probs=squares,
        )

    class Model:
        training = True

        def __init__(self, logps: Tensor) -> None:
            self.logps = logps

        def __call__(self, **_: object) -> SimpleNamespace:
            return outputs(self.logps)

        def modules(self) -> list[object]:
            return []

        is_gradient_checkpointing = False

    model = Model(inputs.token_logps)
    trainer = SimpleNamespace(
        **{
            "beta": B,
            "loss_types": ["sigmoid"],
            "loss_weights": [1.0],
            "label_smoothing": 0.0,
            "f_divergence_type": "reverse_kl",
            "f_alpha_divergence_coef": 0.5,
            "ld_alpha": None,
            "use_weighting": False,
            **settings,
        },
        model=model,
        ref_model=Model(inputs.require("ref_token_logps")),
        precompute_ref_logps=False,
        aux_loss_enabled=False,
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x
        ),
        args=SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    batch = {
        "input_ids": torch.ones(2 * P, T, dtype=torch.int64),
        "attention_mask": torch.ones(2 * P, T, dtype=torch.int64),
        "completion_mask": mask,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl, "is_peft_model", lambda _: False)
        loss: Tensor = trl.DPOTrainer._compute_loss(trainer, model, batch, False)
    return loss


def same_loss_and_gradient(ours: Tensor, theirs: Tensor, inputs: LossInputs) -> None:
    tokens = inputs.token_logps
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)
    got = torch.autograd.grad(ours, tokens)
    torch.testing.assert_close(got, torch.autograd.grad(theirs, tokens), rtol=1e-4, atol=1e-6)


# Name of a divergence here, and in TRL.
DIVERGENCES = {"js": "js_divergence", "forward_kl": "forward_kl", "alpha": "alpha_divergence"}
# Key and hyperparameters here, loss type and settings in TRL.
TRL: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("sigmoid", {}, "sigmoid", {}),
    ("hinge", {}, "hinge", {}),
    ("exo_pair", {"label_smoothing": 1e-3}, "exo_pair", {"label_smoothing": 1e-3}),
    ("nca_pair", {}, "nca_pair", {}),
    ("robust", {"label_smoothing": 0.2}, "robust", {"label_smoothing": 0.2}),
    ("bco_pair", {}, "bco_pair", {}),
    ("sppo_hard", {}, "sppo_hard", {}),
    ("aot", {"label_smoothing": 0.1}, "aot", {"label_smoothing": 0.1}),
    ("aot_unpaired", {}, "aot_unpaired", {}),
    ("apo_zero", {}, "apo_zero", {}),
    ("apo_down", {}, "apo_down", {}),
    ("discopop", {"tau": 0.05}, "discopop", {}),
    ("sigmoid_norm", {}, "sigmoid_norm", {}),
    ("sigmoid", {"f_divergence": "forward_kl"}, "sigmoid", {"f_divergence_type": "forward_kl"}),
    ("hinge", {"f_divergence": "js"}, "hinge", {"f_divergence_type": "js_divergence"}),
    # TRL's coefficient is 1 minus the paper's alpha.
    (
        "robust",
        {"f_divergence": "alpha", "f_alpha": 0.3, "label_smoothing": 0.1},
        "robust",
        {
            "f_divergence_type": "alpha_divergence",
            "f_alpha_divergence_coef": 0.7,
            "label_smoothing": 0.1,
        },
    ),
    # Divided by lengths, a constant of the scores no longer cancels.
    *(
        ("sigmoid_norm", {"f_divergence": ours}, "sigmoid_norm", {"f_divergence_type": theirs})
        for ours, theirs in DIVERGENCES.items()
    ),
    ("sigmoid", {"ld_alpha": 0.4}, "sigmoid", {"ld_alpha": 0.4}),
    ("apo_zero", {"ld_alpha": 0.4}, "apo_zero", {"ld_alpha": 0.4}),
    ("sigmoid", {"wpo": True}, "sigmoid", {"use_weighting": True}),
    ("nca_pair", {"wpo": True}, "nca_pair", {"use_weighting": True}),
]


@pytest.mark.parametrize(
    ("name", "hyper", "loss_type", "settings"),
    TRL,
    ids=[f"{n}-{'-'.join(h)}" for n, h, _, _ in TRL],
)
def test_trl(name: str, hyper: dict[str, Any], loss_type: str, settings: dict[str, Any]) -> None:
    inputs = pair_inputs()
    ours = LOSSES[name](inputs, beta=B, **hyper).loss
    same_loss_and_gradient(ours, trl_dpo(inputs, loss_types=[loss_type], **settings), inputs)


@pytest.mark.parametrize("ours", ["js", "forward_kl"])
def test_trl_ipo_of_means_under_a_divergence(ours: Any) -> None:
    """Without "alpha": TRL's ``exp(x) - 1`` is rounded to fp32, 1e-5 of the gradient."""
    inputs = pair_inputs()
    loss = LOSSES["ipo"](inputs, tau=B, length_normalized=True, f_divergence=ours).loss
    expected = trl_dpo(inputs, loss_types=["ipo"], f_divergence_type=DIVERGENCES[ours])
    same_loss_and_gradient(loss, expected, inputs)


def test_trl_ipo_is_the_length_normalised_one() -> None:
    inputs = pair_inputs()
    theirs = trl_dpo(inputs, loss_types=["ipo"])
    ours = LOSSES["ipo"](inputs, tau=B, length_normalized=True).loss
    same_loss_and_gradient(ours, theirs, inputs)
    assert not torch.isclose(LOSSES["ipo"](inputs, tau=B).loss, theirs, rtol=1e-2)


def test_trl_list_of_losses() -> None:
    inputs = pair_inputs()
    theirs = trl_dpo(
        inputs, loss_types=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0]
    )
    mpo = LOSSES.combine({"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0})
    same_loss_and_gradient(mpo(inputs, beta=B).loss, theirs, inputs)


def test_trl_sigmoid_ignores_label_smoothing() -> None:
    inputs = pair_inputs()
    theirs = trl_dpo(inputs, label_smoothing=0.3)
    torch.testing.assert_close(LOSSES["sigmoid"](inputs, beta=B).loss, theirs)
    ours = LOSSES["sigmoid"](inputs, beta=B, label_smoothing=0.3).loss
    assert not torch.isclose(ours, theirs, rtol=1e-2)


def test_trl_discopop_is_nan_where_its_exponential_overflows() -> None:
    inputs = pair_inputs(scale=300.0)
    reference = inputs.token_logps.detach().clone()
    for w, v in pairs(inputs):
        reference[inputs.segments == w] += 400
        reference[inputs.segments == v] -= 400
    inputs = replace(inputs, ref_token_logps=reference)
    assert trl_dpo(inputs, loss_types=["discopop"]).isnan()
    out = LOSSES["discopop"](inputs, beta=B)
    assert out.loss.item() == pytest.approx(-out.metrics["rewards/margins"].item(), rel=1e-6)


def test_trl_loses_small_values_of_apo_to_cancellation() -> None:
    """1 - sigmoid(a) is 0 in fp32 from a = 17 on; sigmoid(-a) is not."""
    inputs = pair_inputs()
    reference = inputs.token_logps.detach().clone()
    for w, v in pairs(inputs):
        reference[inputs.segments == w] -= 100 / LENGTHS[w]
        reference[inputs.segments == v] += 100 / LENGTHS[v]
    inputs = replace(inputs, ref_token_logps=reference)
    exact = 2 / (1 + math.exp(100 * B))
    assert LOSSES["apo_zero"](inputs, beta=B).loss.item() == pytest.approx(exact, rel=1e-4)
    theirs = trl_dpo(inputs, loss_types=["apo_zero"]).item()
    assert theirs == pytest.approx(exact / 2, rel=1e-2)


def test_trl_a2po() -> None:
    a2po = pytest.importorskip(
        "trl.experimental.a2po.a2po_trainer", reason="TRL, to compare with, is absent"
    )
    inputs = pair_inputs()
    samples = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    # The trainer's stage one is inside a method that generates; this is its formula.
    v_star = 0.5 * (torch.logsumexp(samples / 0.5, dim=1) - math.log(4))
    reference = torch.zeros(6).index_add(0, inputs.segments, inputs.require("ref_token_logps"))
    policy = torch.zeros(6).index_add(0, inputs.segments, inputs.token_logps)
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(beta2=0.01),
        _get_sequence_logps=lambda *_: policy,
        _metrics={"train": defaultdict(list)},
    )
    names = ("input_ids", "attention_mask", "logits_to_keep")
    batch = {**dict.fromkeys(names), "ref_logps": reference, "rewards": rewards}
    batch["v_star"] = v_star.repeat(2)
    theirs = a2po.A2POTrainer.compute_loss(stub, None, batch)
    mine = replace(
        inputs,
        rewards=rewards,
        ref_rewards=samples.flatten(),
        ref_reward_groups=torch.arange(P).repeat_interleave(4),
    )
    ours = LOSSES["a2po"](mine, beta1=0.5, beta2=0.01).loss
    same_loss_and_gradient(ours, theirs, inputs)


# Liger, from hidden states.

LIGER: list[tuple[str, dict[str, Any]]] = [
    ("sigmoid", {}),
    ("hinge", {}),
    ("exo_pair", {"label_smoothing": 1e-2}),
    ("nca_pair", {}),
    ("robust", {"label_smoothing": 0.2}),
    ("bco_pair", {}),
    ("sppo_hard", {}),
    ("apo_zero", {}),
    ("apo_down", {}),
    ("discopop", {}),
]


@pytest.mark.parametrize(("name", "hyper"), LIGER, ids=[n for n, _ in LIGER])
def test_liger(name: str, hyper: dict[str, Any]) -> None:
    """Run Liger's chunked DPO on hidden states and head, and compare both gradients."""
    module = pytest.importorskip(
        "liger_kernel.chunked_loss.dpo_loss", reason="liger-kernel, to compare with, is absent"
    )
    loss_of: Callable[..., Any] = module.LigerFusedLinearDPOLoss
    generator = seeds.generator(2)
    width, vocabulary, hidden_size = 8, 23, 6

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ids = torch.randint(1, vocabulary, (2 * P, width), generator=generator)
    ids[:, :2] = torch.tensor([1, 2])
    lengths = torch.tensor([5, 2, 4, 3, 6, 1])
    columns = torch.arange(width)
    mask = (columns >= 2) & (columns < 2 + lengths[:, None])
    attention = columns < 2 + lengths[:, None]
    hidden, weight = numbers(2 * P, width, hidden_size), numbers(vocabulary, hidden_size)
    ref_hidden, ref_weight = numbers(2 * P, width, hidden_size), numbers(vocabulary, hidden_size)
    for tensor in (hidden, weight):
        tensor.requires_grad_()
    groups = torch.arange(P).repeat(2)
    batch = SequenceBatch.from_padded(ids, mask, attention, groups=groups)
    every = torch.log_softmax(ref_hidden @ ref_weight.T, dim=-1)
    reference = every.gather(-1, batch.logp_targets.clamp(min=0)[..., None])[..., 0]
    ours = fused_loss(
        name,
        hidden,
        weight,
        batch,
        inputs={"preferred": torch.arange(2 * P) < P, "ref_token_logps": reference},
        hyper={"beta": B, **hyper},
    ).loss
    targets = ids.masked_fill(~mask, -100)[:, 1:]
    theirs = loss_of(beta=B, loss_type=name, compiled=False, **hyper)(
        weight, hidden[:, :-1], targets, ref_input=ref_hidden[:, :-1], ref_weight=ref_weight
    )
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    # Liger computes its log-softmax in fp32.
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=1e-6)
    got = torch.autograd.grad(ours, [hidden, weight])
    exact = torch.autograd.grad(theirs, [hidden, weight])
    for one, other in zip(got, exact, strict=True):
        torch.testing.assert_close(one, other.double(), rtol=1e-4, atol=1e-5)
