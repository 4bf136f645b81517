"""A reference that is given to an `OnlineTrainer` is asked as it is given, with its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rao_kernels.errors import InputError
from tests import seeds
from tests.train.online_tools import make
from tests.train.test_online import assert_logps, direct_logps, rounds_of
from tests.train.tiny import tiny_model


def adapted(seed: int) -> Any:
    """A model with an adapter that does something."""
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    seeds.seed_torch(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model


def test_a_given_reference_keeps_its_adapter(tmp_path: Path) -> None:
    make(tmp_path, loss="kimi", rounds=1, given={"ref_model": adapted(1)}).train()
    expected, base = adapted(1), tiny_model()
    for one in rounds_of(tmp_path)[0]:
        direct = direct_logps(expected, one)
        assert_logps(one.ref_token_logps, direct)
        assert not torch.allclose(torch.cat(direct), torch.cat(direct_logps(base, one)), atol=0.01)


def test_another_adapter_of_the_reference_is_another_run(tmp_path: Path) -> None:
    make(tmp_path, loss="kimi", rounds=1, given={"ref_model": adapted(1)}).train()
    given = {"ref_model": adapted(2)}
    trainer = make(tmp_path, loss="kimi", rounds=1, given=given, resume_from_checkpoint="auto")
    with pytest.raises(InputError, match="reference is"):
        trainer.train(True)


def test_weights_in_training_are_no_reference(tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(InputError, match=r"^`ref_model`: .*Without ref_model"):
        make(tmp_path, loss="kimi", model=model, given={"ref_model": model})
