"""Evaluation of a model on held-out prompts: a loss's metrics, KL and rewards of fresh samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data import PromptFormat
from ..errors import DataError, InputError
from ..generation import (
    PromptRow,
    Sample,
    SamplingOptions,
    TransformersSampler,
    derived_seed,
    prompt_ids,
    sampled_logps,
)
from ..losses import LossInputs
from ..losses._terms import log_ratios
from ..rewards import Candidate, Scorer
from ..rewards.interface import attempt
from ..types import LossOutput
from .config import RAOConfig
from .estimates import Estimate, TokenValues, kl_of_samples
from .trainer import RAOTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SampledPrompts:
    """Prompts, their token ids, and the samples of each."""

    rows: list[PromptRow]
    ids: list[list[int]]
    samples: list[list[Sample]]

    def batches(self, size: int) -> Iterator[SampledPrompts]:
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            yield SampledPrompts(self.rows[part], self.ids[part], self.samples[part])

    def statistics(self) -> dict[str, float]:
        """Return the mean number of tokens of a sample, and the share that was not cut."""
        flat = [one for group in self.samples for one in group]
        return {
            "mean_tokens": sum(len(one.ids) for one in flat) / len(flat),
            "finished": sum(one.finished for one in flat) / len(flat),
        }


@dataclass(frozen=True)
class SamplingPlan:
    """What every model of a comparison is asked: the same prompts, settings and seeds."""

    rows: Sequence[PromptRow]
    options: SamplingOptions
    seed: int
    prompt_format: PromptFormat = "auto"
    progress: bool = True

    def run(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, label: str
    ) -> SampledPrompts:
        """Sample from a model, on the device and in the autocast it is in."""
        sampler = TransformersSampler(model, tokenizer)
        ids = [prompt_ids(row.record, tokenizer, self.prompt_format) for row in self.rows]
        sampler.check(ids, self.options)
        samples: list[list[Sample]] = []
        size = self.options.batch_size
        with tqdm(total=len(ids), desc=label, unit="prompt", disable=not self.progress) as bar:
            for number, start in enumerate(range(0, len(ids), size)):
                part = ids[start : start + size]
                seed = derived_seed(self.seed, number)
                samples += sampler.sample(part, self.options, seed=seed)
                bar.update(len(part))
        return SampledPrompts(list(self.rows), ids, samples)


def check_kl_sampling(options: SamplingOptions) -> None:
    """Raise unless samples are of the model's own distribution, whose KL is estimated."""
    whole = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    for name, value in whole.items():
        if getattr(options, name) != value:
            raise InputError(
                name,
                f"{value} for the KL, which is that of the model itself",
                getattr(options, name),
                "Leave ref_model out, or estimate the KL in a run of its own.",
            )


def sampled_kl(
    model: nn.Module, reference: nn.Module, sampled: SampledPrompts, batch_size: int
) -> tuple[dict[str, Estimate], list[list[float]]]:
    """Estimate the KL of `model` to `reference` on the model's samples.

    Returns:
        What `kl_of_samples` does, and per prompt the log-ratio of each sample.
    """
    own, other = (_logps(one, sampled, batch_size) for one in (model, reference))
    ratios = [
        [sum(a) - sum(b) for a, b in zip(*group, strict=True)]
        for group in zip(own, other, strict=True)
    ]
    return kl_of_samples(own, other), ratios


def _logps(model: nn.Module, sampled: SampledPrompts, batch_size: int) -> TokenValues:
    parts = sampled.batches(batch_size)
    return [group for one in parts for group in sampled_logps(model, one.ids, one.samples)]


def sample_rewards(
    scorer: Scorer, sampled: SampledPrompts
) -> tuple[list[list[float]], list[DataError]]:
    """Return per prompt the rewards of its samples, and why others have none.

    Raises:
        DataError: no sample got a reward; says why of the first.
    """
    candidates = [
        Candidate(row.record.prompt, one.text, row.record.where, row.columns, one.finished)
        for row, group in zip(sampled.rows, sampled.samples, strict=True)
        for one in group
    ]
    found = attempt(scorer, candidates)
    errors = [one for one in found if isinstance(one, DataError)]
    if len(errors) == len(found):
        raise errors[0]
    values = iter(found)
    groups = [[next(values) for _ in group] for group in sampled.samples]
    return [[one for one in group if not isinstance(one, DataError)] for group in groups], errors


@contextmanager
def in_precision(config: RAOConfig) -> Iterator[None]:
    """Compute in the mixed precision of the config."""
    dtype = torch.bfloat16 if config.bf16 else torch.float16
    with torch.autocast(config.device.type, dtype, enabled=config.bf16 or config.fp16):
        yield


def loss_metrics(
    model: nn.Module,
    ref_model: nn.Module | None,
    records: Any,
    config: RAOConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, float]:
    """Return a loss's held-out metrics, and the log-ratios of the responses, without training.

    Args:
        model: changed as `RAOTrainer` changes it.
        ref_model: the reference; needed by losses with one.
        records: any source of records.
        config: names the loss.
        tokenizer: of the model.

    Raises:
        InputError: the loss needs a reference, and there is none.
    """
    needs = config.spec.required_inputs(config.hyperparameters())
    if ref_model is None and any(need.startswith("ref_") for need in needs):
        expected = f"the reference, which the loss {config.loss!r} compares the model with"
        raise InputError("ref_model", expected, None)
    trainer = _Evaluator(
        model,
        ref_model=ref_model,
        args=config,
        eval_dataset=records,
        processing_class=tokenizer,
    )
    found = trainer.evaluate()
    runtime = ("_runtime", "_per_second", "_time")
    names = [name for name in found if name.startswith("eval_") and not name.endswith(runtime)]
    return {name.removeprefix("eval_"): found[name] for name in names}


class _Evaluator(RAOTrainer):
    """A trainer that only evaluates, and adds the log-ratios of the responses to the metrics."""

    def _record(
        self,
        kind: str,
        inputs: dict[str, Any],
        loss_inputs: LossInputs,
        result: LossOutput,
        outputs: Any,
    ) -> None:
        super()._record(kind, inputs, loss_inputs, result, outputs)
        if loss_inputs.ref_logps is None and loss_inputs.ref_token_logps is None:
            return
        ratios, seen = log_ratios(loss_inputs), inputs.get("fresh", 1)
        per_sequence = {
            "log_ratios/sequence_mean": ratios.mean(),
            "log_ratios/sequence_std": ratios.std(correction=0),
        }
        self._meters[kind].update(per_sequence, _count(ratios, len(ratios)) * seen)
        tokens = loss_inputs.token_logps.numel()
        per_token = {"log_ratios/token_mean": ratios.sum() / max(tokens, 1)}
        self._meters[kind].update(per_token, _count(ratios, tokens) * seen)


def _count(like: Tensor, number: int) -> Tensor:
    return like.new_full((), number)
