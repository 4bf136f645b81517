"""KTO from records equals TRL's KTOTrainer: the losses of its steps and the trained weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rao_kernels.data import PreferenceDataset, TokenizedRow
from rao_kernels.train import RAOTrainer
from tests.train.rich import rich_dataset
from tests.train.test_trainer import config, dense_inputs, one_batch, trainer
from tests.train.tiny import tiny_model, tiny_rows, tiny_tokenizer

ROWS, BATCH, STEPS = 12, 4, 6


def kto(folder: Path, data: PreferenceDataset, **changes: object) -> RAOTrainer:
    settings = {
        "loss": "kto",
        "per_device_train_batch_size": BATCH,
        "learning_rate": 0.05,
        "max_steps": STEPS,
        "loss_kwargs": {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.5},
    }
    return RAOTrainer(
        tiny_model(),
        args=config(folder, **settings | changes),
        train_dataset=data,
        processing_class=tiny_tokenizer(),
    )


def as_tokenized(row: dict[str, Any], where: str) -> TokenizedRow:
    """A record of TRL's, which pairs each prompt with the response before it in its batch."""
    prompt, response, other = (
        torch.tensor(row[name], dtype=torch.int32)
        for name in ("prompt_ids", "completion_ids", "KL_completion_ids")
    )
    return TokenizedRow(prompt, [response], None, [row["label"]], where, kl_responses=[other])


@torch.no_grad()
def logp_of(model: nn.Module, prompt: Tensor, response: Tensor) -> float:
    ids = torch.cat([prompt, response]).long()[None]
    logps = model(input_ids=ids).logits.double().log_softmax(-1)[0, :-1]
    return float(logps.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :].sum())


def test_steps_and_weights_are_those_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed (extra trl)")
    from datasets import Dataset

    found = tiny_rows(ROWS, responses=(2,))
    table = {
        "prompt": [row["prompt"] for row in found],
        "completion": [row["responses"][i % 2] for i, row in enumerate(found)],
        "label": [i % 2 == 0 for i in range(ROWS)],
    }
    tiny_model().save_pretrained(tmp_path / "model")
    args = trl.KTOConfig(
        str(tmp_path / "trl"),
        max_length=64,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        optim="sgd",
        learning_rate=0.05,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        beta=0.5,
        undesirable_weight=1.5,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        disable_dropout=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    from transformers import AutoModelForCausalLM

    theirs = trl.KTOTrainer(
        AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        args=args,
        train_dataset=Dataset.from_dict(table),
        processing_class=tiny_tokenizer(),
    )
    rows = [as_tokenized(row, str(number)) for number, row in enumerate(theirs.train_dataset)]
    theirs.train()
    ours = kto(tmp_path / "ours", PreferenceDataset(rows))
    ours.train()
    logs = [entry for entry in theirs.state.log_history if "loss" in entry]
    own = [entry for entry in ours.state.log_history if "loss" in entry]
    assert [one["loss"] for one in own] == pytest.approx([one["loss"] for one in logs], rel=2e-5)
    assert [one["kl"] for one in own] == pytest.approx([one["kl"] for one in logs], abs=1e-4)
    assert max(one["kl"] for one in own) > 0.1, "the term takes part"
    after = dict(theirs.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        moved = after[name] - dict(tiny_model().named_parameters())[name]
        assert float((parameter - after[name]).norm()) <= 1e-4 * float(moved.norm()), name


def test_reference_of_mismatched_responses(tmp_path: Path) -> None:
    """From the cache the second time, per record, and by plain logits."""
    run = kto(tmp_path, rich_dataset(3))
    again = kto(tmp_path, rich_dataset(3), ref_cache="require")
    model = tiny_model()
    for row, values, cached in zip(
        run.train_dataset.rows,
        run.train_dataset.references,
        again.train_dataset.references,
        strict=True,
    ):
        assert values.kl.dtype == torch.float64
        for found, response in zip(values.kl, row.kl_responses, strict=True):
            expected = logp_of(model, row.prompt, response)
            assert float(found) == pytest.approx(expected, abs=1e-4)
        assert torch.equal(values.kl, cached.kl)


def test_other_mismatched_responses_are_another_cache(tmp_path: Path) -> None:
    def folders() -> int:
        return len(list((tmp_path / "cache").glob("ref-*")))

    data = rich_dataset(4)
    other = [replace(row, kl_responses=row.kl_responses[::-1]) for row in data.rows]
    settings = {"loss": "kto", "ref_cache_dir": str(tmp_path / "cache")}
    trainer(tmp_path / "a", data, **settings)
    assert folders() == 1
    trainer(tmp_path / "b", PreferenceDataset(other), **settings)
    assert folders() == 2


def test_several_responses_to_a_prompt(tmp_path: Path) -> None:
    """By hand: z0 is the mean of all mismatched log-ratios of the micro-batch."""
    run = trainer(tmp_path, rich_dataset(4), loss="kto", per_device_train_batch_size=4)
    policy = tiny_model(1)
    run.model.load_state_dict(policy.state_dict())
    batch = one_batch(run, 4)
    inputs, _ = run._score(run.model, batch)
    ratios = []
    for row in run.train_dataset.rows:
        for response in row.kl_responses:
            models = (policy, tiny_model())
            own, reference = (logp_of(model, row.prompt, response) for model in models)
            ratios.append(own - reference)
    mean = sum(ratios) / len(ratios)
    found = (inputs.kl_logps - inputs.ref_kl_logps).mean()
    assert float(found) == pytest.approx(mean, abs=1e-4)
    plain = dense_inputs(policy, batch, tiny_model())
    expected = run.spec(
        replace(plain, kl_logps=torch.full((8,), mean), ref_kl_logps=torch.zeros(8)), **run.hyper
    )
    assert float(run.compute_loss(run.model, batch)) == pytest.approx(
        float(expected.loss), rel=1e-5
    )


def test_mismatched_responses_are_made_where_a_dataset_has_none(tmp_path: Path) -> None:
    rows = [replace(row, kl_responses=None) for row in rich_dataset(4).rows]
    made = trainer(tmp_path, PreferenceDataset(rows), loss="kto").train_dataset.rows
    given = zip(made, rows, strict=True)
    assert all(len(one.kl_responses or ()) == len(row.responses) for one, row in given)
