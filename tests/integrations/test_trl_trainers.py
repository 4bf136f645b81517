"""TRL's trainers make the same updates with the op as with TRL's own function."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rao_kernels.integrations import trl as integration

pytest.importorskip("trl", reason="TRL is not installed (extra trl)")

import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    set_seed,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer import utils

from .. import seeds
from ..hf.models import tiny_model as family_model
from ..train.tiny import tiny_model, tiny_rows, tiny_tokenizer

STEPS = 3
# SGD, so that an update is a gradient; Adam would magnify rounding differences near zero.
COMMON: dict[str, object] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "optim": "sgd",
    "learning_rate": 0.05,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "seed": seeds.shifted(42),
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
# Tolerances of a step's log-probs and of all updates; in bf16 TRL rounds its logits, the op not.
FP32_TOLERANCE, BF16_TOLERANCE = 2e-5, 2**-6


def rows(*columns: str) -> Dataset:
    """Return prompts with a good and a bad answer."""
    found = tiny_rows(12, responses=(2,))
    table = {
        "prompt": [row["prompt"] for row in found],
        "chosen": [row["responses"][0] for row in found],
        "rejected": [row["responses"][1] for row in found],
        "completion": [row["responses"][i % 2] for i, row in enumerate(found)],
        "label": [i % 2 == 0 for i in range(len(found))],
    }
    return Dataset.from_dict({column: table[column] for column in columns})


def vowels(completions: list[str], **_: object) -> list[float]:
    """Reward that differs within a group for any sampled completions."""
    return [sum(letter in "aeiou" for letter in one) + 0.1 * len(one) for one in completions]


def dpo(folder: Path, model: PreTrainedModel, **settings: object) -> Trainer:
    peft_config = settings.pop("peft_config", None)
    args = trl.DPOConfig(str(folder), max_length=64, **(COMMON | settings))
    return trl.DPOTrainer(
        model,
        args=args,
        train_dataset=rows("prompt", "chosen", "rejected"),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


def kto(folder: Path, model: PreTrainedModel, **settings: object) -> Trainer:
    args = trl.KTOConfig(str(folder), max_length=64, **COMMON, **settings)
    data = rows("prompt", "completion", "label")
    return trl.KTOTrainer(model, args=args, train_dataset=data, processing_class=tiny_tokenizer())


def sft(folder: Path, model: PreTrainedModel, **settings: object) -> Trainer:
    args = trl.SFTConfig(str(folder), max_length=64, **COMMON, **settings)
    data = rows("prompt", "completion")
    return trl.SFTTrainer(model, args=args, train_dataset=data, processing_class=tiny_tokenizer())


def sampling(method: str) -> Callable[..., Trainer]:
    """Build a trainer that samples its completions."""

    def make(folder: Path, model: PreTrainedModel, **settings: object) -> Trainer:
        config, kind = getattr(trl, f"{method}Config"), getattr(trl, f"{method}Trainer")
        lengths = {"num_generations": 4, "max_completion_length": 6}
        return kind(
            model,
            reward_funcs=vowels,
            args=config(str(folder), **lengths, **COMMON, **settings),
            train_dataset=rows("prompt"),
            processing_class=tiny_tokenizer(),
        )

    return make


def reward(folder: Path, model: PreTrainedModel, **settings: object) -> Trainer:
    args = trl.RewardConfig(str(folder), max_length=64, **COMMON, **settings)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
    data = rows("prompt", "chosen", "rejected")
    return trl.RewardTrainer(
        classifier, args=args, train_dataset=data, processing_class=tiny_tokenizer()
    )


def orpo(folder: Path, model: PreTrainedModel, **settings: object) -> Trainer:
    args = ORPOConfig(str(folder), max_length=64, **COMMON, **settings)
    data = rows("prompt", "chosen", "rejected")
    return ORPOTrainer(model, args=args, train_dataset=data, processing_class=tiny_tokenizer())


def cpo(folder: Path, model: PreTrainedModel, **settings: object) -> Trainer:
    args = CPOConfig(str(folder), max_length=64, **COMMON, **settings)
    data = rows("prompt", "chosen", "rejected")
    return CPOTrainer(model, args=args, train_dataset=data, processing_class=tiny_tokenizer())


# name -> trainer, its settings. Between them they use every output, and the entropy's gradient.
RUNS: dict[str, tuple[Callable[..., Trainer], dict[str, object]]] = {
    "dpo": (dpo, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}),
    "dpo_wpo": (dpo, {"use_weighting": True}),
    "kto": (kto, {}),
    "sft": (sft, {"completion_only_loss": True, "gradient_accumulation_steps": 2}),
    "sft_dft": (sft, {"loss_type": "dft"}),
    "grpo": (sampling("GRPO"), {"beta": 0.05, "temperature": 0.8, "entropy_coef": 0.1}),
    "rloo": (sampling("RLOO"), {}),
}


def train(
    make_trainer: Callable[..., Trainer],
    folder: Path,
    make_model: Callable[[], PreTrainedModel] = tiny_model,
    **settings: object,
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Return the log of each step, and the change of each parameter."""
    # From a folder: TRL loads the reference model from the model's path.
    make_model().save_pretrained(folder / "model")
    set_seed(seeds.shifted())
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    trainer = make_trainer(folder, model, **settings)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    moved = {name: after[name].detach() - p for name, p in before.items()}
    return trainer.state.log_history[:STEPS], moved


def train_on_op(
    monkeypatch: pytest.MonkeyPatch, *args: object, **settings: object
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Run `train` with TRL's own function removed."""

    def forbidden(*_: object) -> None:
        raise AssertionError("TRL's own function was called")

    integration.enable()
    own = utils._ChunkedLogProbFunction.original
    try:
        with monkeypatch.context() as patch:
            patch.setattr(own, "apply", forbidden)
            found = train(*args, **settings)
        assert integration.status().calls >= STEPS
        return found
    finally:
        integration.disable()


def assert_same(
    ours: tuple[list[dict[str, float]], dict[str, Tensor]],
    theirs: tuple[list[dict[str, float]], dict[str, Tensor]],
    tolerance: float,
) -> None:
    for mine, other in zip(ours[0], theirs[0], strict=True):
        names = {name for name in other if not re.search("time|runtime|per_second", name)}
        assert names <= set(mine)
        for name in names:
            assert mine[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), name
    moved = torch.cat([value.flatten() for value in theirs[1].values()])
    assert moved.norm() > 0
    difference = torch.cat([ours[1][name].flatten() for name in theirs[1]]) - moved
    assert difference.norm() <= tolerance * moved.norm()


@pytest.mark.parametrize("name", RUNS)
def test_trains_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_trainer, settings = RUNS[name]
    theirs = train(make_trainer, tmp_path, **settings)
    ours = train_on_op(monkeypatch, make_trainer, tmp_path, **settings)
    assert_same(ours, theirs, FP32_TOLERANCE)


@pytest.mark.parametrize("family", ["gemma2", "cohere"])
def test_heads_with_softcap_or_scale(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_model() -> PreTrainedModel:
        return family_model(family)

    theirs = train(dpo, tmp_path, make_model)
    ours = train_on_op(monkeypatch, dpo, tmp_path, make_model)
    assert_same(ours, theirs, FP32_TOLERANCE)


def test_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings() -> dict[str, object]:
        return {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])}

    theirs = train(dpo, tmp_path, **settings())
    ours = train_on_op(monkeypatch, dpo, tmp_path, **settings())
    assert_same(ours, theirs, FP32_TOLERANCE)


def test_bf16_autocast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = train(dpo, tmp_path, bf16=True)
    ours = train_on_op(monkeypatch, dpo, tmp_path, bf16=True)
    assert_same(ours, theirs, BF16_TOLERANCE)


@pytest.mark.parametrize("make_trainer", [reward, cpo, orpo])
def test_trainers_that_do_not_use_the_function(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """`status` shows 0 calls."""
    integration.enable()
    try:
        train(make_trainer, tmp_path)
        assert integration.status() == integration.Status(enabled=True, calls=0, options={})
    finally:
        integration.disable()


def test_documentation_names_the_trainers_that_use_the_function() -> None:
    sources = {path: path.read_text() for path in Path(trl.__file__).parent.rglob("*_trainer.py")}
    using = {
        name
        for path, source in sources.items()
        if "add_fused_lm_head(" in re.sub("`add_fused_lm_head`", "", source)
        for name in re.findall(r"^class (\w+Trainer)\(", source, re.MULTILINE)
    }
    assert {"DPOTrainer", "KTOTrainer", "SFTTrainer", "GRPOTrainer", "RLOOTrainer"} <= using
    page = (Path(__file__).parents[2] / "docs" / "trl.md").read_text()
    assert all(f"`{name}`" in page for name in using), using
