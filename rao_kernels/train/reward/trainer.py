"""`RewardTrainer`: trains a reward model on pairs, on `transformers.Trainer`.

Legend: P pairs of a micro-batch, S = 2 P sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput

from ...errors import InputError
from ...losses import bradley_terry_loss
from ...rewards.head import use_fp32_head
from ...types import LossOutput
from ..base import RunTrainer
from ..checks import check_rows, check_run_arguments
from ..identity import describe
from ..model import add_adapter, disable_dropout, load_tokenizer, name_of, named
from ..output_folder import check_writable
from ..prepare import each_dataset, make_collator
from .config import RewardConfig
from .data import as_format, pair_statistics, prepare_pairs
from .report import RewardReport, measure, write_report

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RewardTrainer(RunTrainer):
    """Trains a model to give the chosen response of a pair the larger reward (RAO, Eq. 2).

    The model is a language model's trunk with one output on the last token. What is saved loads
    with `AutoModelForSequenceClassification`, in `rewards.RewardModelScorer` and in TRL.

    Args:
        model: name or folder of a language model, base or fine-tuned, whose head is replaced by a
            random one (fp32 weights); of a reward model, which is trained on; or a model of
            `AutoModelForSequenceClassification` with one output, changed in place.
        args: the settings; None: the defaults, with output_dir="reward_model".
        train_dataset, eval_dataset: sources of records, as `RAOTrainer` takes them.
        processing_class: the tokenizer; None: the one in the model's folder.
        peft_config: adapter to put on the model, with task_type="SEQ_CLS".
        callbacks, optimizers: as of `transformers.Trainer`.

    Raises:
        InputError: an argument or a combination of settings cannot work.
        DataError: a record is bad, or no record holds a pair.

    Example:
        >>> args = RewardConfig(output_dir="rm", num_train_epochs=1)
        >>> trainer = RewardTrainer("DIR_OR_NAME", args=args, train_dataset="pairs.jsonl")
        >>> trainer.train()
        >>> trainer.save_model()
    """

    _tag_names = ["reward-model", "rao-kernels"]  # noqa: RUF012
    units = "pairs"
    args: RewardConfig

    def __init__(
        self,
        model: str | PathLike[str] | PreTrainedModel | nn.Module,
        args: RewardConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = RewardConfig(output_dir="reward_model") if args is None else args
        if not isinstance(args, RewardConfig):
            raise InputError("args", "a RewardConfig", type(args).__name__)
        check_run_arguments(args)
        if processing_class is None:
            name = name_of(model) if isinstance(model, nn.Module) else fspath(model)
            processing_class = load_tokenizer(name)
        tokenizer = as_format(processing_class, args)
        check_writable(Path(str(args.output_dir)))
        super().__init__(
            model=prepare_reward_model(model, tokenizer, peft_config, args.seed),
            args=args,
            data_collator=make_collator(tokenizer),
            train_dataset=prepare_pairs(train_dataset, "training data", args, tokenizer),
            eval_dataset=prepare_pairs(eval_dataset, "evaluation data", args, tokenizer),
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._check_rows(self.train_dataset, self.eval_dataset)
        # Rewards of the pairs of each evaluation since the step `_evaluated_at`.
        self._evaluated: dict[str, Tensor] = {}
        self._evaluated_at = -1
        self._collected: list[Tensor] = []
        self._begin_run(self._identity())

    def _check_rows(self, *given: Any) -> None:
        for dataset in (one for some in given for one in each_dataset(some)):
            model: Any = self.model
            check_rows(dataset.rows, model, self.processing_class, self.args.max_length)

    def _identity(self) -> dict[str, Any] | None:
        if self.train_dataset is None:
            return None
        center = self.args.center_rewards_coefficient
        method = {"loss": "bradley_terry", "center_rewards_coefficient": center}
        return describe(self, {**method, "margin": self.args.margin})

    # The loss.

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the loss of a micro-batch over the pairs of the whole step.

        Args:
            inputs: what `data.Collator` returns of pairs.
            num_items_in_batch: the pairs of all micro-batches of the step, on all ranks; None: of
                this micro-batch.
        """
        result, rewards, outputs = self._score(model, inputs)
        self._record("train", result, rewards, inputs, with_loss=False)
        count = len(rewards) if num_items_in_batch is None else num_items_in_batch
        loss = result.values.sum() / count * inputs.get("fresh", 1)
        if num_items_in_batch is not None:
            # Engines average gradients over ranks.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _score(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[LossOutput, Tensor, Any]:
        """Return the loss, the rewards ``[P, 2]`` (chosen, rejected) and the model's output."""
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            use_cache=False,
        )
        rewards = outputs.logits[:, 0].view(-1, 2)
        margins = inputs["rewards"].view(-1, 2)[:, 0] if "rewards" in inputs else None
        center = self.args.center_rewards_coefficient
        result = bradley_terry_loss(rewards[:, 0], rewards[:, 1], margin=margins, center=center)
        return result, rewards.detach(), outputs

    def _record(
        self,
        kind: str,
        result: LossOutput,
        rewards: Tensor,
        inputs: Mapping[str, Any],
        *,
        with_loss: bool,
    ) -> None:
        """Add a micro-batch to the metrics of "train" or "eval"."""
        metrics = {
            **result.metrics,
            "rewards/all_mean": rewards.mean(),
            "rewards/all_std": rewards.std(correction=0),
        }
        if with_loss:
            metrics["loss"] = result.loss
        count = torch.tensor(len(rewards), device=rewards.device)
        self._meters[kind].update(metrics, count * inputs.get("fresh", 1))

    def count_units(self, batch: Mapping[str, Any]) -> Tensor:
        ids: Tensor = batch["input_ids"]
        return torch.tensor(len(ids) // 2, device=ids.device)

    # Evaluation.

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, None, None]:
        """Return the loss of a micro-batch; the pairs' means are taken at the end."""
        inputs = self._drop_repeated(self._prepare_inputs(inputs), self.args.eval_batch_size)
        with torch.no_grad(), self.compute_loss_context_manager():
            result, rewards, _ = self._score(model, inputs)
        self._record("eval", result, rewards, inputs, with_loss=True)
        if bool(inputs.get("fresh", True)):
            self._collected.append(rewards.float())
        return result.loss, None, None

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
        if self._evaluated_at != self.state.global_step:
            self._evaluated, self._evaluated_at = {}, self.state.global_step
        self._evaluated[metric_key_prefix] = self._all_ranks(self._collected)
        self._collected = []
        return output

    def _all_ranks(self, parts: Sequence[Tensor]) -> Tensor:
        """Join the rewards of all ranks, which may hold different numbers of pairs."""
        empty = torch.zeros(0, 2, device=self.args.device)
        own = torch.cat([empty, *parts])
        padded = self.accelerator.pad_across_processes(own, pad_index=float("nan"))
        joined: Tensor = self.accelerator.gather(padded)
        return joined[~joined.isnan().any(1)].cpu()

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `transformers.Trainer` does; new data is prepared first."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            tokenizer = self.processing_class
            eval_dataset = prepare_pairs(eval_dataset, "evaluation data", self.args, tokenizer)
            self._check_rows(eval_dataset)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def report(self) -> RewardReport | None:
        """Measure the model on the held-out pairs; None without any.

        reward_model.json and reward_model.png in the output folder show accuracy, calibration and
        rewards. The last evaluation serves, if the model has not changed since.
        """
        if self.eval_dataset is None:
            return None
        stale = self._evaluated_at != self.state.global_step or self.args.load_best_model_at_end
        if stale:
            self.evaluate()
        rewards = torch.cat(list(self._evaluated.values()))
        found = measure(rewards)
        if self.args.should_save:
            write_report(found, rewards, Path(str(self.args.output_dir)))
        return found

    def conclude(self) -> str:
        found = self.report()
        return "" if found is None else found.describe()

    # What the model card says.

    def method(self) -> str:
        return "the Bradley-Terry loss of a reward model"

    def facts(self) -> Iterator[tuple[str, str]]:
        yield "center_rewards_coefficient", f"{self.args.center_rewards_coefficient:g}"
        if self.train_dataset is not None:
            has_margins = any(row.rewards is not None for row in self.train_dataset.rows[:1])
            yield "margin", self.args.margin if has_margins else "none"
            yield "training data", f"{len(self.train_dataset)} pairs"

    def data_facts(self) -> Iterator[tuple[str, str]]:
        if self.train_dataset is not None:
            yield from pair_statistics(self.train_dataset)


def load_reward_model(name: str, dtype: str, seed: int) -> nn.Module:
    """Load a reward model, or a language model with a random head, drawn from `seed`."""
    set_seed(seed)
    with named(name, "model"):
        model: nn.Module = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, dtype=dtype
        )
    return model


def prepare_reward_model(
    model: str | PathLike[str] | nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    peft_config: PeftConfig | None,
    seed: int,
) -> nn.Module:
    """Load (fp32 weights, a random head from `seed`), add the adapter, disable dropout."""
    if not isinstance(model, nn.Module):
        model = load_reward_model(fspath(model), "float32", seed)
    outputs = getattr(getattr(model, "config", None), "num_labels", None)
    if outputs != 1:
        got = f"a {type(model).__name__} with {outputs or 'no'} outputs"
        raise InputError("model", "a reward model, with one output (num_labels=1)", got)
    loaded: Any = model
    # The head looks for the last token that is not this one.
    loaded.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    use_fp32_head(loaded)
    if peft_config is not None:
        if str(getattr(peft_config.task_type, "value", peft_config.task_type)) != "SEQ_CLS":
            expected = "an adapter with task_type='SEQ_CLS', which keeps the head too"
            raise InputError("peft_config", expected, repr(peft_config.task_type))
        model = add_adapter(loaded, peft_config, seed)
    disable_dropout(model)
    return model
