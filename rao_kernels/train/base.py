"""`RunTrainer`: what every trainer here adds to `transformers.Trainer` around its loss.

The output folder of one run, complete checkpoints, metrics gathered over ranks, a stop at values
that are not finite, a model card.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..data import Example, PreferenceDataset, dataset_statistics
from ..errors import InputError, NotYetError
from ..sequence import SequenceBatch
from . import checkpoints, identity
from .card import write_model_card
from .guards import DivergenceGuard, RisingLoss, diverged
from .metrics import Meter, drop_repeated
from .output_folder import OutputFolder, left_by_a_run
from .plot import RunRecorder

if TYPE_CHECKING:
    from .config import RunConfig
    from .identity import Identity


# The value of `resume_from_checkpoint` of a command that goes on with the run in its folder.
AUTOMATIC = "auto"


class RunTrainer(Trainer, ABC):
    """A `transformers.Trainer` of one run in one output folder.

    A subclass computes the loss, and calls `_begin_run` at the end of its `__init__`.
    """

    # The loss is divided by the units of all micro-batches of a step, on all ranks.
    loss_is_scaled_for_ga = True
    _tag_names = ["rao-kernels"]  # noqa: RUF012
    args: RunConfig
    processing_class: Any
    data_collator: Callable[[Sequence[Example]], dict[str, Any]]
    train_dataset: Any
    eval_dataset: Any
    # The command that made the trainer, if one did, for the model card.
    command: Sequence[str] = ()
    # What batch sizes count.
    units = "prompts"

    def __init__(self, *, callbacks: Any = None, **given: Any) -> None:
        _check_reporting(given["args"])
        super().__init__(callbacks=[RunRecorder(), RisingLoss(), *(callbacks or ())], **given)
        if hasattr(self.model, "peft_config"):
            # peft takes the tags of an adapter's card from its base model.
            adapted: Any = self.model
            adapted.get_base_model().add_model_tags(self._tag_names)
        # Trainer asks this before 5.20, and the attribute of the class since.
        self.model_accepts_loss_kwargs = True
        if self.args.resume_from_checkpoint == AUTOMATIC:
            self._check_data()
        self._divergence = DivergenceGuard(self._reduce)
        self.add_callback(self._divergence)
        self._meters = {"train": Meter(), "eval": Meter()}

    def _begin_run(self, run: Identity | None) -> None:
        """Take the output folder for this run.

        run: everything the result depends on; None for a trainer that only evaluates.
        """
        self._output = OutputFolder(self.args, run)

    def _check_data(self) -> None:
        """Raise if the output folder holds a run on other data, before these are scored."""
        folder, data = Path(str(self.args.output_dir)), self.train_dataset
        has_begun = left_by_a_run(folder) and (folder / identity.FILE).exists()
        if has_begun and isinstance(data, PreferenceDataset):
            identity.check_same_run(folder, identity.of_data(data), "output_dir")

    # What a subclass describes.

    @abstractmethod
    def method(self) -> str:
        """Return what the model is trained with, for the model card: "the loss `rao`"."""

    @abstractmethod
    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield names and values of what the model card says about the data and the method."""

    def data_facts(self) -> Iterator[tuple[str, str]]:
        """Yield names and statistics of the training data, for the model card."""
        if self.train_dataset is not None:
            yield from dataset_statistics(self.train_dataset.rows).named()

    def trial_examples(self, indices: Sequence[int]) -> list[Example]:
        """Return examples of the training data as the collator takes them, for a dry run.

        What training computes for them beforehand is computed for them alone; no file is written.
        """
        return [self.train_dataset[index] for index in indices]

    def trial_reference(self) -> nn.Module | None:
        """Return the reference if training computes log-probs with it that are not known yet."""
        return None

    def run_state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside the weights, as JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `run_state` returned when the checkpoint was saved."""

    @abstractmethod
    def count_units(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the number of units of the loss in a collated micro-batch: prompts, pairs ..."""

    # Metrics.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._meters["train"].pop(self._reduce)
        super().log(logs, start_time)

    def _reduce(self, values: Tensor, how: str) -> Tensor:
        """Join the values of all ranks by "sum" or "max"."""
        joined: Tensor = self.accelerator.gather(values[None])
        return joined.sum(0) if how == "sum" else joined.amax(0)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> Tensor | None:
        """Count the loss's units in the micro-batches of a step, on all ranks."""
        if not batch_samples:
            return None
        batch_samples[-1] = self._drop_repeated(batch_samples[-1], self._train_batch_size)
        counts = [self.count_units(batch) * batch.get("fresh", 1) for batch in batch_samples]
        total = torch.stack(counts).sum(0).to(device)
        return self._reduce(total, "sum").clamp(min=1)

    def _drop_repeated(self, batch: dict[str, Any], size: int) -> dict[str, Any]:
        """Call `drop_repeated`; with `dataloader_drop_last` nothing is repeated."""
        if self.args.dataloader_drop_last:
            return batch
        return drop_repeated(batch, self.accelerator, size)

    def evaluation_means(self) -> dict[str, float]:
        """Return the means of the evaluation that ends."""
        return self._meters["eval"].pop(self._reduce)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        assert output.metrics is not None
        means = self.evaluation_means().items()
        output.metrics.update({f"{metric_key_prefix}_{key}": mean for key, mean in means})
        return output

    def _prepare_input(self, data: Any) -> Any:
        """Move without casting: DeepSpeed's cast would round rewards and log-probs."""
        if isinstance(data, Mapping):
            return {key: self._prepare_input(value) for key, value in data.items()}
        return data.to(self.args.device) if isinstance(data, Tensor | SequenceBatch) else data

    def predict(self, *_: Any, **__: Any) -> Any:
        raise NotYetError("predict: there are no logits to give. evaluate(data) gives the metrics")

    # Runs and their checkpoints.

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train, from the beginning or from a checkpoint.

        The output folder must be new, or hold this very run, which must then be resumed. The same
        trainer may train again.

        Args:
            resume_from_checkpoint: True for the newest complete checkpoint of the output folder
                (from the beginning if there is none), or the folder of one.

        Raises:
            InputError: the checkpoint or the output folder is another run's.
            DivergedError: the loss or the weights are no longer finite.
        """
        folder = self._output.begin(resume_from_checkpoint, self.accelerator.wait_for_everyone)
        if folder is not None:
            self.restore(checkpoints.read_state(folder))
        self.before_training()
        try:
            with self.training_context():
                return super().train(str(folder) if folder else None, *args, **kwargs)
        except InputError as error:
            # The weights are finite, but so large that the hidden states are not.
            if error.argument == "hidden" and self.state.global_step > 0:
                raise diverged(self.args, self.state.global_step + 1, str(error)) from error
            raise

    def finished_steps(self) -> int | None:
        """Return the steps of this very run if the output folder holds its end, else None.

        Raises:
            InputError: the output folder holds another run.
        """
        return self._output.finished_steps()

    def mark_finished(self) -> None:
        """Note in the output folder that the run has ended and its model is saved."""
        self._output.mark_finished(self.state.global_step, self.state.epoch or 0.0)

    def before_training(self) -> None:
        """Report what training will ask of the model; called once the run is known to be valid."""

    def conclude(self) -> str:
        """Report on the trained model; return what a command prints of it."""
        return ""

    def training_context(self) -> AbstractContextManager[None]:
        """Return the context that training runs in."""
        return nullcontext()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self._divergence.add_loss(loss)
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.args.should_save and not _internal_call:
            write_model_card(self, Path(output_dir or str(self.args.output_dir)))
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            checkpoints.write_state(folder, self.run_state())

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir = Path(self._get_output_dir(trial=trial))
        folder = run_dir / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            checkpoints.unmark(folder)
        with checkpoints.without_rotation(self.args):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._output.identify(folder)
            checkpoints.mark_complete(folder)
            best = self.state.best_model_checkpoint
            checkpoints.rotate(run_dir, self.args.save_total_limit, best)


def _check_reporting(args: RunConfig) -> None:
    """Raise if metrics are to be reported to what transformers does not know or cannot import."""
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):  # type: ignore[no-untyped-call]
            callback()
    except (AssertionError, ImportError, RuntimeError, ValueError) as error:
        # The errors with which its callbacks ask for their packages.
        said = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            "report_to", "'none' or installed packages", f"{args.report_to} ({said})"
        ) from error
