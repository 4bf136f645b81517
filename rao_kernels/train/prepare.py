"""Turn a user's data into the trainer's datasets: load, tokenize, pair, score, estimate log_z0."""

from __future__ import annotations

import logging
import warnings
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import tee, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data import (
    Collator,
    DataReport,
    PreferenceDataset,
    Record,
    Reference,
    TokenizedRow,
    check_shared_start,
    dataset_statistics,
    iter_records,
    iter_tokenized,
    shared_start,
)
from ..data.records import NoRowsError
from ..errors import InputError, OneSidedTargetsWarning
from ..hf import attach_fused_head
from ..losses import Loss, fit_log_z0
from ..losses.rao import LogZ0Estimate
from ..refcache import (
    ReferenceCache,
    RowLayout,
    RowValues,
    ShardValues,
    StartWeights,
    config_fingerprint,
    fill_cache,
    join_rows,
    model_fingerprint,
    reference_mode,
    score_batch,
    template_fingerprint,
    tokenizer_fingerprint,
)
from .config import RAOConfig, RunConfig
from .rows import rows_for_loss, tokenize_options
from .streaming import stored_rows

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


Datasets = PreferenceDataset | dict[str, PreferenceDataset] | None


def make_collator(tokenizer: PreTrainedTokenizerBase, prefix_length: int = 1) -> Collator:
    """Return the collator that pads with the tokenizer's token, or with token 0 if it has none.

    Nothing attends to padding, so that any token will do.
    """
    pad = tokenizer.pad_token_id
    return Collator(0 if pad is None else pad, prefix_length)


def each_dataset(datasets: Datasets) -> list[PreferenceDataset]:
    if datasets is None:
        return []
    return list(datasets.values()) if isinstance(datasets, dict) else [datasets]


def prepare_training(
    source: Any, args: RAOConfig, tokenizer: PreTrainedTokenizerBase
) -> PreferenceDataset | None:
    """Make the dataset to train on from any source of records."""
    return None if source is None else prepare_dataset(source, "training data", args, tokenizer)


def prepare_evaluation(
    source: Any, args: RAOConfig, tokenizer: PreTrainedTokenizerBase
) -> Datasets:
    """Make datasets to evaluate on from any source of records, or a dict of several."""
    name = "evaluation data"
    if isinstance(source, Mapping):
        return {
            key: prepare_dataset(one, f"{name} {key!r}", args, tokenizer)
            for key, one in source.items()
        }
    return None if source is None else prepare_dataset(source, name, args, tokenizer)


def say(args: RunConfig, text: str) -> None:
    if args.process_index == 0:
        print(text, flush=True)


def prepare_dataset(
    source: Any,
    name: str,
    config: RAOConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> PreferenceDataset:
    """Load, check and tokenize the records that the loss can use, and print a report.

    source: a `PreferenceDataset`, a list of `Record`, or any source that `load_records` reads.
    With `config.streaming` records go to disk one by one, and are read from there.
    """
    if isinstance(source, PreferenceDataset):
        return _as_loss_reads(source, name, config)
    report = DataReport()

    def prepared() -> Iterator[TokenizedRow]:
        return rows_for_loss(_tokenized(source, config, tokenizer, report), config, report)

    rows: Sequence[TokenizedRow]
    if config.streaming:
        rows, report = stored_rows(source, config, tokenizer, prepared, report)
    else:
        rows = list(prepared())
    _report(rows, name, config, report)
    dataset = PreferenceDataset(rows)
    dataset.reported = True
    return dataset


def _tokenized(
    source: Any, config: RAOConfig, tokenizer: PreTrainedTokenizerBase, report: DataReport
) -> Iterator[TokenizedRow]:
    if not (isinstance(source, list) and source and isinstance(source[0], Record)):
        source = iter_records(source, bad_rows=config.bad_rows, report=report)
    return iter_tokenized(
        source,
        tokenizer,
        tokenize_options(config),
        bad_rows=config.bad_rows,
        report=report,
        progress=not config.disable_tqdm,
    )


def _as_loss_reads(dataset: PreferenceDataset, name: str, config: RAOConfig) -> PreferenceDataset:
    """Return `dataset` if its records are as the loss reads them, else a new one in memory."""
    counts = DataReport(len(dataset), sum(len(row.responses) for row in dataset.rows))
    given, originals = tee(dataset.rows)
    read = rows_for_loss(given, config, counts)
    if all(row is original for row, original in zip_longest(read, originals)):
        if not dataset.reported:
            _report(dataset.rows, name, config, counts)
        return dataset
    counts = DataReport(counts.rows, counts.responses)
    rows = list(rows_for_loss(dataset.rows, config, counts))
    _report(rows, name, config, counts)
    if dataset.references is not None:
        expected = f"records as the loss {config.loss!r} reads them, since they have references"
        raise InputError(name, expected, "others", "Pass the dataset without references.")
    return PreferenceDataset(rows)


def _report(rows: Sequence[TokenizedRow], name: str, config: RAOConfig, report: DataReport) -> None:
    """Print what was loaded and left out, and statistics; raise if no record is left."""
    say(config, f"{name}: {report.describe()}")
    for skipped in report.skipped:
        logger.warning("skipped %s", skipped)
    for where in report.rows_without_label:
        logger.warning("%s: dropped, all its rewards are equal: nothing to label", where)
    if not rows:
        unpaired = config.spec.unit == "pair" and report.rows_without_pair > 0
        fix = (
            "It takes pairs: two responses to a prompt, of different rewards or labels. Single "
            "responses with labels train 'kto' or 'bco'."
        )
        raise NoRowsError(
            name, f"no record is left for the loss {config.loss!r}", fix if unpaired else ""
        )
    for line in dataset_statistics(rows, report).describe().splitlines():
        say(config, f"  {line}")


def find_prefix_length(rows: Sequence[TokenizedRow], config: RAOConfig, known: int | None) -> int:
    """Return the number of tokens of t0, which all `rows` must begin with.

    It is `known` from earlier data, or the number asked for, or as many as all prompts share; 1 if
    the loss scores no prompt.
    """
    if "prompt_logps" not in config.spec.required_inputs(config.hyperparameters()):
        return 1
    if known is None:
        asked = config.prefix_length
        known = max(shared_start(rows), 1) if asked == "auto" else asked
    check_shared_start(rows, known)
    return known


class ReferenceScorer:
    """Adds reference log-probs to datasets, from the cache or by running the reference.

    model: the reference. start: weights that it is given for that, of an adapter; None: an adapter
    is switched off.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RAOConfig,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        start: StartWeights | None = None,
    ) -> None:
        self.model = attach_fused_head(model)
        self.start = start
        self.config = config
        self.tokenizer = tokenizer
        self.accelerator = accelerator
        self.fingerprint = model_fingerprint(model) if start is None else start.fingerprint(model)

    def attach(self, dataset: PreferenceDataset, prefix_length: int) -> None:
        """Set `dataset.references`; every rank scores its share of the shards."""
        parts = self._parts(dataset) | {"prefix_length": str(prefix_length)}
        cache = ReferenceCache(self._root(), parts, self._layout(dataset))
        collator = make_collator(self.tokenizer, prefix_length)

        def score(rows: range) -> ShardValues:
            return join_rows(self._score(dataset, rows, collator))

        fill_cache(
            cache,
            score,
            policy=self.config.ref_cache,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            progress=not self.config.disable_tqdm and self.accelerator.is_main_process,
        )
        self.accelerator.wait_for_everyone()
        dataset.references = [
            Reference(row.prompt, row.responses, row.tokens, row.kl) for row in cache.load()
        ]

    def _root(self) -> Path:
        given = self.config.ref_cache_dir
        return Path(given) if given else Path(str(self.config.output_dir)) / "ref_cache"

    def _parts(self, dataset: PreferenceDataset) -> dict[str, str]:
        """Return everything the values depend on, except t0."""
        settings = self.model.config
        return {
            "format": "3",
            "model": self.fingerprint,
            "config": config_fingerprint(settings),
            "attention": str(getattr(settings, "_attn_implementation", None)),
            "dtype": f"{next(self.model.parameters()).dtype}, "
            f"autocast {self.accelerator.mixed_precision}",
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "template": template_fingerprint(self.tokenizer),
            "max_length": str(self.config.max_length),
            "per_token": str(self.config.ref_per_token),
            "data": dataset.fingerprint(),
        }

    def _layout(self, dataset: PreferenceDataset) -> list[RowLayout]:
        def tokens(index: int) -> int:
            row = dataset.rows[index]
            longest = max(len(row.prompt) + len(response) for response in row.responses)
            return longest * len(row.responses) if self.config.ref_per_token else 0

        return [
            RowLayout(len(row.responses), tokens(index), len(row.kl_responses or ()))
            for index, row in enumerate(dataset.rows)
        ]

    def _score(
        self, dataset: PreferenceDataset, rows: range, collator: Collator
    ) -> list[RowValues]:
        device = next(self.model.parameters()).device
        step = self.config.per_device_eval_batch_size
        values: list[RowValues] = []
        for start in range(rows.start, rows.stop, step):
            indices = range(start, min(start + step, rows.stop))
            batch = collator([dataset[index] for index in indices])
            tensors = {key: value.to(device) for key, value in batch.items()}
            with reference_mode(self.model, self.start), self.accelerator.autocast():
                values += score_batch(
                    self.model,
                    tensors,
                    engine_options=self.config.engine_options(),
                    per_token=self.config.ref_per_token,
                )
        return values


def estimate_log_z0(
    loss: Loss, hyper: Mapping[str, Any], known: Sequence[PreferenceDataset], config: RAOConfig
) -> dict[str, Any]:
    """Replace the name of an estimate of log_z0 in `hyper` by its value, `fit_log_z0`.

    Args:
        hyper: of the loss; log_z0 may be "auto" or "logmeanexp". Without such a name, or without
            data, it is returned unchanged.
        known: datasets; the first one's rewards are used (the training set, if there is one),
            with the beta of the part of the loss that reads log_z0.
    """
    for _, bound in loss.bound_parts(hyper):
        method: LogZ0Estimate | float | None = bound.get("log_z0")
        if isinstance(method, str) and known:
            dataset = known[0]
            counts = torch.tensor([len(row.responses) for row in dataset.rows])
            groups = torch.arange(len(counts)).repeat_interleave(counts)
            values = _all_rewards(dataset.rows)
            level = float(fit_log_z0(values, bound["beta"], groups, method))
            say(config, f"log_z0 fitted on {len(dataset)} prompts: {level:.4f} nats")
            others = {key: v for key, v in hyper.items() if key.rpartition(".")[2] != "log_z0"}
            return {**others, "log_z0": level}
    return dict(hyper)


def report_targets(
    loss: Loss, hyper: Mapping[str, Any], dataset: PreferenceDataset, config: RAOConfig
) -> None:
    """Print the targets of each part of the loss that has log_z0; warn if all have one sign."""
    for _, bound in loss.bound_parts(hyper):
        if "log_z0" not in bound:
            continue
        text, one_sign = describe_targets(dataset, bound["beta"], bound["log_z0"])
        say(config, text)
        if one_sign:
            warnings.warn(
                "the targets raise, or lower, the log-prob of every response "
                f"(log_z0={bound['log_z0']:g}, {text}); log_z0='auto' centres the targets",
                OneSidedTargetsWarning,
                stacklevel=3,
            )


def describe_targets(dataset: PreferenceDataset, beta: float, log_z0: float) -> tuple[str, bool]:
    """Describe the targets of the log-ratios, ``r / beta - log_z0``, by their quantiles.

    Returns:
        The text, and whether all targets have one sign.
    """
    targets = _all_rewards(dataset.rows) / beta - log_z0
    shares = torch.tensor([0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0], dtype=torch.float64)
    # torch.quantile refuses large inputs; an index into the sorted values does not.
    ordered = targets.sort().values
    quantiles = ordered[(shares * (len(ordered) - 1)).round().long()].tolist()
    parts = [f"{share:.0%} {value:+.2f}" for share, value in zip(shares, quantiles, strict=True)]
    one_sign = len(ordered) > 0 and float(ordered[0]) * float(ordered[-1]) > 0
    return f"target log-ratios (nats): {', '.join(parts)}", one_sign


def _all_rewards(rows: Iterable[TokenizedRow]) -> Tensor:
    """Return the rewards of all responses in fp64, in order."""
    rewards = array("d", (reward for row in rows for reward in row.rewards or ()))
    return torch.tensor(rewards, dtype=torch.float64)
