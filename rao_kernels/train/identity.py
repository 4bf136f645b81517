"""The identity of a run: everything its result depends on.

It is kept in the output folder and in every checkpoint, so that a run resumes only from a
checkpoint of its own. What may change on resuming is left out: the length of the run, what is
logged, saved and evaluated, the number of devices.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..data import PreferenceDataset
from ..errors import InputError
from ..refcache import (
    model_fingerprint,
    start_fingerprint,
    template_fingerprint,
    tokenizer_fingerprint,
    write_atomic,
)
from .config import RAOConfig, RunConfig
from .model import value_model_of
from .prepare import ReferenceScorer

if TYPE_CHECKING:
    from transformers import Trainer

FILE = "identity.json"
# Values by name; one that is too long to show is {"what": ..., "sha256": ...}.
Identity = dict[str, Any]

_SETTINGS = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"),
    *("max_grad_norm", "train_sampling_strategy", "seed", "data_seed", "bf16", "fp16"),
)
# Entries of an adapter's config that do not change what it computes.
_NOT_OF_THE_ADAPTER = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
}


def describe_run(
    trainer: Trainer, scorer: ReferenceScorer | None, prefix_length: int | None
) -> Identity | None:
    """Return the identity of a `RAOTrainer`'s run, before its first step; None without data."""
    args = trainer.args
    if trainer.train_dataset is None:
        return None
    assert isinstance(args, RAOConfig)
    reference = None if scorer is None else scorer.fingerprint
    same = scorer is not None and scorer.model is trainer.model
    items: Identity = {
        "loss": args.spec.name,
        **{f"hyperparameter {key}": value for key, value in args.hyperparameters().items()},
        "reference": reference and {"what": "weights", "sha256": reference},
        "prefix_length": prefix_length,
        "packing": args.packing,
        **of_values(trainer.model, args),
    }
    return describe(trainer, items, reference if same else None)


def describe(trainer: Trainer, method: Identity, start: str | None = None) -> Identity:
    """Return the identity of a trainer's run: its method, and data, model, tokenizer, settings.

    start: fingerprint of the model, where it is known already.
    """
    args, model, dataset = trainer.args, trainer.model, trainer.train_dataset
    assert isinstance(model, nn.Module) and isinstance(dataset, PreferenceDataset)
    tokenizer: Any = trainer.processing_class
    items: Identity = {
        **method,
        **of_data(dataset),
        "model": {"what": _name(model), "sha256": start or start_fingerprint(model)},
        "tokenizer": {
            "what": str(getattr(tokenizer, "name_or_path", "")) or "a tokenizer",
            "sha256": tokenizer_fingerprint(tokenizer),
        },
        "chat template": {"what": "template", "sha256": template_fingerprint(tokenizer)},
        **_adapter(model),
        "prompts per step (batch size x gradient_accumulation_steps x devices)": (
            args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        ),
        **{name: getattr(args, name) for name in _SETTINGS},
    }
    # Through JSON, which turns tuples into lists, so that it equals what a file gives back.
    return dict(json.loads(json.dumps(items, default=_plain)))


def of_data(dataset: PreferenceDataset) -> Identity:
    """Return the part of a run's identity that its training data alone tell."""
    responses = sum(len(row.responses) for row in dataset.rows)
    what = f"{len(dataset)} prompts with {responses} responses"
    return {"training data": {"what": what, "sha256": data_fingerprint(dataset)}}


def of_values(model: Any, args: RAOConfig) -> Identity:
    """Return what the values of the loss come from, if it reads any."""
    own = value_model_of(model)
    if own is None:
        return {"value_model": args.value_model}
    return {"value_model": {"what": _name(own), "sha256": model_fingerprint(own)}}


def settings(args: RunConfig) -> Identity:
    """Return the part of a run's identity that its settings alone tell."""
    items = {name: getattr(args, name) for name in _SETTINGS}
    if isinstance(args, RAOConfig):
        items["loss"] = args.spec.name
    return dict(json.loads(json.dumps(items, default=_plain)))


def data_fingerprint(dataset: PreferenceDataset) -> str:
    """Return the SHA-256 of token ids, rewards, labels and all else a record holds for the loss."""
    digest = hashlib.sha256(dataset.fingerprint().encode())
    for row in dataset.rows:
        values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
        marks = {k: v for k, v in values.items() if k not in ("prompt", "responses", "where")}
        digest.update(json.dumps(marks, default=_plain).encode())
    return digest.hexdigest()


def write(folder: Path, identity: Identity) -> None:
    write_atomic(folder / FILE, json.dumps(identity, indent=1).encode())


def read(folder: Path) -> Identity | None:
    """Read the identity kept in a folder; None without one."""
    path = folder / FILE
    try:
        identity: Identity = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        fix = "Start in another output_dir."
        raise InputError("resume_from_checkpoint", f"JSON in {path}", str(error), fix) from error
    return identity


def check_same_run(folder: Path, own: Identity, argument: str = "resume_from_checkpoint") -> None:
    """Raise unless `folder`, a checkpoint or an output folder, belongs to the run `own`.

    argument: the one that named the folder, for the message.
    """
    there = read(folder)
    if there is None:
        raise InputError(
            argument,
            f"a folder with {FILE}, which says what was trained on what",
            f"{folder} without one",
            "It was written by an older version or another program: start in another output_dir.",
        )
    # Entries that only one version of a package knows are not compared.
    differing = [
        f"{name} is {_show(own[name])}, was {_show(there[name])}"
        for name in own
        if name in there and _compared(own[name]) != _compared(there[name])
    ]
    if differing:
        raise InputError(
            argument,
            f"the settings of the run in {folder}",
            f"others: {'; '.join(differing)}",
            "Continue that run with its own settings, or start this one in another output_dir.",
        )


def _adapter(model: nn.Module) -> Identity:
    """Return type and settings of the trained adapter, if any."""
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    items: Identity = {"adapter": [str(one.peft_type.value) for one in configs.values()] or None}
    for config in configs.values():
        settings = config.to_dict().items()
        items |= {f"adapter {k}": v for k, v in settings if k not in _NOT_OF_THE_ADAPTER}
    return items


def _name(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "_name_or_path", "")) or "a model"


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return value.tolist() if isinstance(value, Tensor) else str(value)


def _compared(value: Any) -> Any:
    return value["sha256"] if isinstance(value, dict) and "sha256" in value else value


def _show(value: Any) -> str:
    if isinstance(value, dict) and "sha256" in value:
        return f"{value['what']} (sha256 {value['sha256'][:12]})"
    return json.dumps(value)
