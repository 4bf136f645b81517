"""`RAOTrainer`: trains with a loss of `LOSSES` on preference data, on `transformers.Trainer`.

Legend: P prompts and S sequences of a micro-batch, T tokens.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..data import LOSS_FIELDS, JoinedRows, PreferenceDataset, TokenizedRow
from ..errors import InputError, OneSidedTargetsWarning
from ..fused import scoring_of
from ..hf import check_packing, load_value_head, save_value_head
from ..losses import Loss, LossInputs
from ..refcache import keep_start, mismatched_logps
from ..sequence import SequenceBatch
from ..sequence.model_inputs import model_inputs
from ..types import EngineOptions, LossOutput
from .base import RunTrainer
from .checks import check_arguments, check_objects, check_rows
from .config import RAOConfig
from .guards import warn_about_ties
from .identity import describe_run
from .metrics import count_units, record, token_stats, total_loss
from .model import (
    add_value_head,
    find_tokenizer,
    prepare_model,
    prepare_reference,
    run_dtype,
    value_model_of,
)
from .output_folder import check_writable
from .prepare import (
    Datasets,
    ReferenceScorer,
    each_dataset,
    estimate_log_z0,
    find_prefix_length,
    make_collator,
    prepare_evaluation,
    prepare_training,
    report_targets,
    say,
)

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RAOTrainer(RunTrainer):
    """Aligns a causal language model with any loss of `rao_kernels.losses.LOSSES`, RAO by default.

    Making a trainer loads and checks everything, tokenizes the data and scores it with the
    reference, so that mistakes are found before training.

    Args:
        model: a model, a `PeftModel`, or a name or folder to load one from (fp32 weights); the
            folder of an adapter gives a `PeftModel` whose adapter is trained further. Changed in
            place: its head is fused, its dropout set to 0.
        ref_model: the reference, given as the model is. None: the model as it is at the start. Of
            a model with a fresh adapter that is its base model; of an adapter that was trained
            before a copy is kept.
        args: the settings; None: the defaults, with output_dir="rao_output".
        train_dataset, eval_dataset: a path or a list of paths, an iterable of records, a
            `datasets` object, a data frame, a list of `data.Record`, or a
            `data.PreferenceDataset`; for evaluation also a dict of several. None: no training, no
            evaluation.
        processing_class: the tokenizer; None: the one in the model's folder.
        peft_config: adapter to put on the model. One that the model has already is merged into its
            weights first.
        callbacks, optimizers: as of `transformers.Trainer`.

    Raises:
        InputError: an argument or a combination of settings cannot work.
        DataError: a record is bad, or lacks what the loss needs.

    Example:
        >>> args = RAOConfig(output_dir="out", beta=0.1, learning_rate=2e-5, num_train_epochs=1)
        >>> trainer = RAOTrainer("DIR_OR_NAME", args=args, train_dataset="records.jsonl")
        >>> trainer.train()
        >>> trainer.save_model()
    """

    _tag_names = ["rao", "rao-kernels"]  # noqa: RUF012
    # True in a trainer whose records hold responses that its model has just sampled.
    learns_from_rollouts = False
    # Divides the policy's logits; other than 1 where the responses were sampled at it.
    logp_temperature = 1.0
    args: RAOConfig

    def __init__(
        self,
        model: str | PathLike[str] | PreTrainedModel | nn.Module,
        ref_model: str | PathLike[str] | nn.Module | None = None,
        args: RAOConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = RAOConfig(output_dir="rao_output") if args is None else args
        check_arguments(args, rollouts=self.learns_from_rollouts)
        check_objects(model, ref_model, processing_class)
        if processing_class is None:
            processing_class = find_tokenizer(model)
        model = prepare_model(model, peft_config, args.seed)
        self.spec: Loss = args.spec
        self.hyper = args.hyperparameters()
        self._needs = self.spec.required_inputs(self.hyper)
        self._scoring = scoring_of(self.spec, self.hyper)
        self._fresh_adapter = peft_config is not None
        if self._reads_values:
            add_value_head(model, args.value_model)
        check_writable(Path(str(args.output_dir)))
        training, held_out = self._load(train_dataset, eval_dataset, args, processing_class)
        super().__init__(
            model=model,
            args=args,
            data_collator=make_collator(processing_class),
            train_dataset=training,
            eval_dataset=held_out,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if args.packing:
            with self.accelerator.autocast():
                check_packing(model, value_model_of(model), dtype=run_dtype(args, model))
        self._tolerance = args.tolerance(run_dtype(args, model))
        self._prefix_length: int | None = None
        self._prepare(ref_model)

    def _load(
        self, train: Any, held_out: Any, args: Any, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Any, Any]:
        """Return the datasets to train and to evaluate on, of what the user gave."""
        return (
            prepare_training(train, args, tokenizer),
            prepare_evaluation(held_out, args, tokenizer),
        )

    def _prepare(self, ref_model: Any) -> None:
        """Score the data with the reference, estimate log_z0, and take the output folder."""
        warn_about_ties(self.eval_dataset)
        self._scorer = self._make_scorer(ref_model)
        self._first_row: list[TokenizedRow] = []
        self._prepared: list[PreferenceDataset] = []
        self._add_references(self.train_dataset, self.eval_dataset)
        given = self.hyper
        known = [*each_dataset(self.train_dataset), *each_dataset(self.eval_dataset)]
        self.hyper = estimate_log_z0(self.spec, given, known, self.args)
        self._log_z0_is_fitted = self.hyper != given
        self._begin_run(describe_run(self, self._scorer, self._prefix_length))

    def _make_scorer(self, ref_model: Any) -> ReferenceScorer | None:
        if not any(need.startswith("ref_") for need in self._needs):
            return None
        own: Any = self.model
        reference = own if ref_model is None else prepare_reference(ref_model, self.args.device)
        start = keep_start(reference, added=ref_model is None and self._fresh_adapter)
        return ReferenceScorer(reference, self.args, self.processing_class, self.accelerator, start)

    def _add_references(self, *given: Datasets) -> None:
        """Find t0, which these data and all later ones share, and score them with the reference.

        The reference may be the model itself, so this must come before training.
        """
        datasets = [one for some in given for one in each_dataset(some)]
        rows = JoinedRows(self._first_row, *(dataset.rows for dataset in datasets))
        if not rows:
            return
        readers: list[Any] = [self.model, *([self._scorer.model] if self._scorer else [])]
        readers += [value_model_of(self.model) or self.model]
        for model in dict.fromkeys(readers):
            check_rows(rows, model, self.processing_class, self.args.max_length)
        self._prefix_length = find_prefix_length(rows, self.args, self._prefix_length)
        collator = make_collator(self.processing_class, self._prefix_length)
        self.data_collator = replace(collator, packing=self.args.packing)
        if not self._first_row and self._scoring.prompts != "skipped":
            say(self.args, f"t0: the first {self._prefix_length} tokens of every prompt")
        self._first_row = rows[:1]
        self._prepared += datasets
        for dataset in datasets:
            if self._scorer is not None and dataset.references is None:
                self._scorer.attach(dataset, self._prefix_length)

    # The loss.

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute ``sum(weight * value)`` of a micro-batch over the units of the whole step.

        It calls `_score`, the loss and `_record`, each of which a subclass may override.

        Args:
            inputs: what `data.Collator` returns.
            num_items_in_batch: the units of all micro-batches of the step, on all ranks; None:
                of this micro-batch.
        """
        loss_inputs, outputs = self._score(model, inputs)
        result = self.spec(loss_inputs, normalizer=num_items_in_batch, **self.hyper)
        self._record("train", inputs, loss_inputs, result, outputs)
        loss = result.loss * inputs.get("fresh", 1)
        if num_items_in_batch is not None:
            # Engines average gradients over ranks.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _score(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[LossInputs, Any]:
        """Run the wrapped model, and return the inputs of the loss and the model's output.

        Args:
            model: with the fused head, in its wrapper (DDP, FSDP); called once with gradients.
            inputs: what `data.Collator` returns, on the model's device. All that it holds of
                `data.LOSS_FIELDS` reaches the loss, such as the `old_token_logps`, `advantages`,
                `returns` and `old_values` of `TokenizedRow.token_inputs`.
        """
        sequences: SequenceBatch = inputs["sequences"]
        options = EngineOptions(**self.args.engine_options(), grad_tolerance=self._tolerance)
        score = functools.partial(
            model, logp_temperature=self.logp_temperature, engine_options=options
        )
        given = {name: inputs[name] for name in LOSS_FIELDS if name in inputs}
        # Before the pass with gradients, which wrappers expect to be the last one.
        given |= self._mismatched(score, inputs)
        outputs = score(
            **model_inputs(inputs),
            **self._scoring.head_inputs(sequences),
            logp_stats=self._asked_stats(),
        )
        return self._scoring.loss_inputs_of(sequences, outputs, given), outputs

    @torch.no_grad()
    def _mismatched(self, score: Callable[..., Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Return KTO's `kl_logps`, whose mean log-ratio is the one over all ranks."""
        if "kl_logps" not in self._needs:
            return {}
        logps = mismatched_logps(score, inputs)
        assert logps is not None  # `prepare_dataset` has paired the records
        ratios = logps - inputs["ref_kl_logps"]
        sums = torch.stack([ratios.sum(), torch.ones_like(ratios).sum()])
        total, count = self._reduce(sums * inputs.get("fresh", 1), "sum").unbind()
        return {"kl_logps": inputs["ref_kl_logps"] + total / count}

    def _asked_stats(self) -> tuple[str, ...]:
        """Return the statistics to ask of the head: those of the loss and those logged."""
        logged = ("entropy", "is_top1") if self.args.token_stats else ()
        return tuple(dict.fromkeys((*logged, *self._scoring.model_stats)))

    def _record(
        self,
        kind: str,
        inputs: dict[str, Any],
        loss_inputs: LossInputs,
        result: LossOutput,
        outputs: Any,
    ) -> None:
        """Add a micro-batch to the metrics of "train" or "eval".

        Args:
            kind: which of them.
            inputs: what `data.Collator` returns; "fresh" of it is 0 where nothing is to count.
            loss_inputs, outputs: what `_score` returned.
            result: the loss of `loss_inputs`.
        """
        meter, seen = self._meters[kind], inputs.get("fresh", 1)
        record(meter, self.spec, loss_inputs, result, seen, with_loss=kind == "eval")
        if self.args.token_stats:
            means, tokens = token_stats(inputs["sequences"], outputs)
            meter.update(means, tokens * seen)

    def count_units(self, batch: Mapping[str, Any]) -> Tensor:
        return count_units(self.spec, batch)

    # Metrics and evaluation.

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Add a held-out micro-batch to the metrics; their means are taken at the end."""
        inputs = self._drop_repeated(self._prepare_inputs(inputs), self.args.eval_batch_size)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss_inputs, outputs = self._score(model, inputs)
        result = self.spec(loss_inputs, **self.hyper)
        self._record("eval", inputs, loss_inputs, result, outputs)
        return result.loss, None, None

    def evaluation_means(self) -> dict[str, float]:
        return total_loss(self.spec, super().evaluation_means())

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `transformers.Trainer` does; new data is prepared and scored first."""
        named = eval_dataset is None or isinstance(eval_dataset, str)
        if not named and not any(eval_dataset is one for one in self._prepared):
            self._check_reference_is_here()
            eval_dataset = prepare_evaluation(eval_dataset, self.args, self.processing_class)
            self._add_references(eval_dataset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OneSidedTargetsWarning)
            return super().evaluate(eval_dataset, *args, **kwargs)

    def _check_reference_is_here(self) -> None:
        trained_over = self._scorer is not None and self._scorer.model is self.model
        if trained_over and self.state.global_step > 0 and not hasattr(self.model, "peft_config"):
            raise InputError(
                "eval_dataset",
                "data given before training, or a ref_model",
                "new data after training changed the reference",
                "Pass it as eval_dataset= when the trainer is made.",
            )

    # Runs and their checkpoints.

    @property
    def _policy(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)
        return self.model

    @property
    def _reads_values(self) -> bool:
        return self._scoring.values != "unread"

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and self._reads_values:
            folder = Path(output_dir or str(self.args.output_dir))
            save_value_head(self._policy, folder, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_values(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        assert self.state.best_model_checkpoint is not None
        self._load_values(self.state.best_model_checkpoint)

    def _load_values(self, folder: str) -> None:
        """Load the value head; FSDP and DeepSpeed load it with the other weights."""
        if self._reads_values and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            load_value_head(self._policy, Path(folder))

    def before_training(self) -> None:
        report_targets(self.spec, self.hyper, self.train_dataset, self.args)

    @contextmanager
    def training_context(self) -> Iterator[None]:
        with warnings.catch_warnings():
            # The whole training set was checked; targets of one micro-batch may have one sign.
            warnings.simplefilter("ignore", OneSidedTargetsWarning)
            yield

    def run_state(self) -> dict[str, Any]:
        return {"loss": self.spec.name, "prefix_length": self._prefix_length, **self.hyper}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the log_z0 that the run began with, instead of a new estimate."""
        if self._log_z0_is_fitted and "log_z0" in state:
            self.hyper["log_z0"] = state["log_z0"]

    def method(self) -> str:
        return f"the loss `{self.spec.name}`"

    def facts(self) -> Iterator[tuple[str, str]]:
        hyper = ", ".join(f"{key}={value}" for key, value in self.hyper.items())
        yield "hyperparameters of the loss", hyper or "none"
        if self.train_dataset is not None:
            rows = self.train_dataset.rows
            responses = sum(len(row.responses) for row in rows)
            yield "training data", f"{len(rows)} prompts with {responses} responses"
