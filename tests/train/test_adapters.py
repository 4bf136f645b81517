"""A policy that begins with a trained adapter: its reference is the model as it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from rao_kernels.errors import InputError
from rao_kernels.train import RAOTrainer
from rao_kernels.train.model import load_model
from tests import seeds
from tests.train.test_trainer import config, trainer
from tests.train.tiny import save_tiny, tiny_model, tiny_rows, tiny_tokenizer

LORA = {"r": 2, "target_modules": "all-linear"}


@pytest.fixture
def sft(tmp_path: Path) -> Path:
    """The folder of an adapter that does something, as SFT by LoRA leaves it."""
    base = str(save_tiny(tmp_path / "base"))
    model = get_peft_model(load_model(base, torch.float32), LoraConfig(**LORA))
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            if "lora_B" in name:
                seeds.seed_torch(index)
                parameter.normal_(std=0.05)
    model.save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


def responses_of(model: nn.Module, run: RAOTrainer) -> list[float]:
    """The first response's log-prob of each record, by plain logits."""
    found = []
    for row in run.train_dataset.rows:
        ids = torch.cat([row.prompt, row.responses[0]]).long()[None]
        with torch.no_grad():
            logps = model(input_ids=ids).logits.double().log_softmax(-1)[0, :-1]
        found.append(float(logps.gather(-1, ids[0, 1:, None])[len(row.prompt) - 1 :].sum()))
    return found


def references(run: RAOTrainer) -> list[float]:
    return [float(one.responses[0]) for one in run.train_dataset.references]


def of_folder(folder: Path, model: Any, **changes: Any) -> RAOTrainer:
    extra = {key: changes.pop(key) for key in ("peft_config", "ref_model") if key in changes}
    return RAOTrainer(
        str(model) if isinstance(model, Path) else model,
        args=config(folder, loss="sigmoid", **changes),
        train_dataset=tiny_rows(5, responses=(2,)),
        processing_class=tiny_tokenizer(),
        **extra,
    )


def test_the_reference_is_the_model_with_its_trained_adapter(tmp_path: Path, sft: Path) -> None:
    whole = PeftModel.from_pretrained(tiny_model(), sft)
    for model in (sft, PeftModel.from_pretrained(tiny_model(), sft, is_trainable=True)):
        run = of_folder(tmp_path / "run", model)
        assert isinstance(run.model, PeftModel)
        expected = responses_of(whole, run)
        assert references(run) == pytest.approx(expected, abs=1e-4)
        assert expected != pytest.approx(responses_of(tiny_model(), run), abs=1e-2)
    run.train()
    assert abs(run.state.log_history[0]["rewards/margins"]) < 1e-4, "log-ratios begin at 0"
    assert abs(run.state.log_history[-2]["rewards/margins"]) > 1e-4
    policy = responses_of(run.model, run)
    assert policy != pytest.approx(expected, abs=1e-3)
    new = run._scorer
    assert new is not None
    run.evaluate(tiny_rows(3, responses=(2,)))
    scored = run._prepared[-1]
    moved = [float(one.responses[0]) for one in scored.references]
    fresh = of_folder(tmp_path / "fresh", sft)
    fresh.evaluate(tiny_rows(3, responses=(2,)))
    before = [float(one.responses[0]) for one in fresh._prepared[-1].references]
    assert moved == pytest.approx(before, abs=1e-5), "new data is scored by the copy"
    assert responses_of(run.model, run) == policy, "the policy has its weights again"


def test_the_saved_folder_holds_the_trained_adapter_alone(tmp_path: Path, sft: Path) -> None:
    run = of_folder(tmp_path / "run", sft)
    run.train()
    run.save_model()
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert saved.keys() == load_file(sft / "adapter_model.safetensors").keys()
    assert not [path for path in (tmp_path / "run").iterdir() if path.name == "reference"]
    again = PeftModel.from_pretrained(tiny_model(), tmp_path / "run")
    assert responses_of(again, run) == pytest.approx(responses_of(run.model, run), abs=1e-5)


def test_resuming_keeps_the_reference(tmp_path: Path, sft: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1}
    whole = of_folder(tmp_path / "run", sft, **settings)
    whole.train()
    resumed = of_folder(tmp_path / "run", sft, ref_cache="require", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    after = dict(resumed.model.named_parameters())
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(after[name], parameter), name


@pytest.mark.parametrize("loss", ["sigmoid", "simpo"])
def test_another_adapter_is_another_reference_and_another_run(
    tmp_path: Path, sft: Path, loss: str
) -> None:
    def run_of(scale: float) -> RAOTrainer:
        model = PeftModel.from_pretrained(tiny_model(), sft, is_trainable=True)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(scale)
        return trainer(tmp_path / "run", tiny_rows(4, responses=(2,)), model, loss=loss)

    run_of(1.0).train()
    with pytest.raises(InputError, match="model is"):
        run_of(2.0).train(resume_from_checkpoint=True)


def test_a_new_adapter_goes_onto_the_merged_one(tmp_path: Path, sft: Path) -> None:
    run = of_folder(tmp_path / "run", sft, peft_config=LoraConfig(**LORA))
    expected = responses_of(PeftModel.from_pretrained(tiny_model(), sft), run)
    assert references(run) == pytest.approx(expected, abs=1e-4)
    assert run._scorer is not None and run._scorer.start is None
    with run.model.disable_adapter():
        assert responses_of(run.model, run) == pytest.approx(expected, abs=1e-4)


def test_an_adapter_as_the_reference_of_another_model(tmp_path: Path, sft: Path) -> None:
    whole = PeftModel.from_pretrained(tiny_model(), sft)
    for reference in (str(sft), whole):
        run = of_folder(tmp_path / "run", tiny_model(1), ref_model=reference)
        assert references(run) == pytest.approx(responses_of(whole, run), abs=1e-4)


def test_an_adapter_of_pickled_weights_is_refused(tmp_path: Path, sft: Path) -> None:
    (sft / "adapter_model.safetensors").rename(sft / "adapter_model.bin")
    with pytest.raises(InputError, match=r"`model`.*adapter_model\.safetensors"):
        of_folder(tmp_path / "run", sft)


def test_the_tokenizer_of_an_adapter_is_its_base_models(tmp_path: Path, sft: Path) -> None:
    run = RAOTrainer(str(sft), args=config(tmp_path / "run"), train_dataset=tiny_rows(2))
    assert run.processing_class.get_vocab() == tiny_tokenizer().get_vocab()
    changed = tiny_tokenizer()
    changed.add_tokens(["zz"])
    changed.save_pretrained(sft)
    run = RAOTrainer(str(sft), args=config(tmp_path / "own"), train_dataset=tiny_rows(2))
    assert "zz" in run.processing_class.get_vocab()
