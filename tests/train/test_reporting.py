"""Metrics reach callbacks and the programs of `report_to`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from rao_kernels.errors import InputError
from tests.train.test_trainer import trainer


class Noted(TrainerCallback):
    """Keeps what is logged; made anew by each trainer, as those of transformers are."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.seen.append(dict(given["logs"]))


@pytest.mark.parametrize("by", ["callback", "report_to"])
def test_metrics_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setattr(Noted, "seen", [])
    given: dict[str, Any] = {"callbacks": [Noted()]}
    if by == "report_to":
        monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Noted)
        given = {"report_to": "wandb"}
    run = trainer(tmp_path, **given)
    run.train()
    steps = [logs for logs in Noted.seen if "loss" in logs]
    assert len(steps) == run.state.global_step
    for name in ("rao/mse", "rewards/margins", "logps/chosen", "grad_norm", "learning_rate"):
        assert all(name in logs for logs in steps), name


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard", "nothing"])
def test_what_cannot_be_reported_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for one in ("wandb", "trackio", "tensorboard"):
        monkeypatch.setattr(integration_utils, f"is_{one}_available", lambda: False)
    with pytest.raises(InputError, match=f"`report_to`.*{name}"):
        trainer(tmp_path, report_to=name)
