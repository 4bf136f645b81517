"""`RunConfig`, `RAOConfig`: settings of a run, on top of `transformers.TrainingArguments`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from ..data import BadRows, PromptFormat, unmet_needs
from ..errors import InputError, MissingDependencyError
from ..losses import LOSSES, Loss
from ..losses.rao import LogZ0Estimate, PromptTerm
from ..refcache import CachePolicy
from ..types import EngineOptions
from . import device

try:
    from transformers import TrainingArguments
except ImportError as error:
    raise MissingDependencyError("transformers", "train") from error


if TYPE_CHECKING:
    LogZ0 = float | LogZ0Estimate
    PrefixLength = int | Literal["auto"]
    GradTolerance = float | Literal["auto"]
else:
    # HfArgumentParser refuses such unions. It hands over the text, and __post_init__ reads it.
    LogZ0 = PrefixLength = GradTolerance = str

# The largest tolerances at which what is dropped adds less to the error of the gradients than
# rounding already does: docs/sparse.md has the measurements.
HIDDEN_BY_ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-13}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class RunConfig(TrainingArguments):
    """Settings that every trainer here has, beside all of `transformers.TrainingArguments`.

    Raises:
        InputError: a setting is out of range, or settings do not work together.
    """

    learning_rate: float = _option(
        1e-6,
        "Peak learning rate. 1e-6 is for a full model of billions of weights; the demo trains 135M "
        "with 2e-5, LoRA takes about 10 times a full model's. --warmup_steps makes the first steps "
        "smaller (docs/training.md).",
    )
    per_device_train_batch_size: int = _option(
        4, "Prompts, each with all its responses, per device and micro-batch."
    )
    per_device_eval_batch_size: int = _option(
        4, "Prompts per device in evaluation and in scoring with the reference."
    )
    logging_steps: float = _option(
        10, "Steps between two lines of metrics; below 1: a share of all steps."
    )
    logging_nan_inf_filter: bool = _option(False, "Log the last finite loss in place of NaN.")
    remove_unused_columns: bool = _option(False, "Must be false: the collator needs every column.")

    max_length: int = _option(1024, "Most tokens of prompt and response; prompts are never cut.")
    truncate_responses: bool = _option(False, "Cut responses that do not fit; else drop them.")
    prompt_format: PromptFormat = _option(
        "auto",
        "A text prompt as a user turn of the chat template, or plain after BOS; 'auto': chat if "
        "the tokenizer has a template.",
    )
    bad_rows: BadRows = _option(
        "raise", "Raise at the first bad record, or skip bad ones and report them."
    )
    streaming: bool = _option(
        False,
        "Write the tokenized records to `data` in the output folder and read them from there, for "
        "data larger than memory; the result is the same.",
    )

    def __post_init__(self) -> None:
        device.fall_back_to_cpu(self)
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.use_liger_kernel:
            raise InputError(
                "use_liger_kernel", "False, since Liger replaces the model's head too", True
            )
        if self.remove_unused_columns:
            raise InputError("remove_unused_columns", "False", True)
        if not 0.0 <= self.learning_rate < math.inf:
            raise InputError("learning_rate", "a finite number from 0 on", self.learning_rate)


@dataclass
class RAOConfig(RunConfig):
    """Settings of `RAOTrainer`, beside all of `transformers.TrainingArguments`.

    Batch sizes count prompts, each with all its responses. `rao-kernels train --help` describes
    every field.

    Raises:
        InputError: a setting is out of range, or settings do not work together.
    """

    loss: str = _option(
        "rao",
        "Name of the loss (`rao-kernels losses` lists them), or several with weights, as JSON; in "
        "Python also a dict.",
    )
    beta: float | None = _option(
        None,
        "Strength of the pull to the reference, for RAO in reward per nat (default: the loss's "
        "own; RAO's is 0.1).",
    )
    log_z0: LogZ0 = _option(
        "auto",
        "RAO's log Z(t0) in nats (the paper's best is 50), or how it is estimated, once, from the "
        "rewards of the training set: 'auto', mean reward / beta, centres the targets; "
        "'logmeanexp', log mean exp(reward / beta). The number is kept in the checkpoint.",
    )
    prompt_term: PromptTerm | None = _option(
        None,
        "How the prompt's log-ratio DX enters RAO's loss: without gradient (default), not at all, "
        "with gradient, or as exp(DX) times log_z0, the paper's Eq. 7 taken literally.",
    )
    loss_kwargs: dict[str, Any] | str | None = _option(
        None, "Further hyperparameters of the loss, as JSON."
    )

    value_model: str = _option(
        "head",
        "Where a loss that reads values (dro_value, ppo) has them from: 'head', a linear layer on "
        "the policy's hidden states; or the name or folder of a model that is trained beside the "
        "policy.",
    )

    prefix_length: PrefixLength = _option(
        "auto",
        "Tokens of t0, the beginning that all prompts share and RAO does not score; 'auto': as "
        "many as they share. The paper's is 1.",
    )

    ref_cache_dir: str | None = _option(
        None, "Folder of the reference log-probs (default: ref_cache in the output folder)."
    )
    ref_cache: CachePolicy = _option(
        "reuse", "Reuse what is valid, require all of it (an error if not), or rebuild."
    )
    ref_per_token: bool = _option(
        False, "Keep reference log-probs per token: log-ratios are exact, the cache larger."
    )

    packing: bool = _option(
        False,
        "Lay the sequences of a micro-batch one after another, without padding; refused for models "
        "that would mix them.",
    )
    token_stats: bool = _option(False, "Log entropy and mean_token_accuracy of the responses.")
    backend: str | None = _option(None, "Backend of the fused head (default: the best there is).")
    workspace_bytes: int | None = _option(
        None,
        "Bytes of logits kept for backward; 0: recompute them (default: up to 1 GiB, with a large "
        "head on a GPU up to 2.5 GiB; docs/memory.md).",
    )
    grad_tolerance: GradTolerance = _option(
        "auto",
        "Probability mass each token may drop in backward; 'auto': so little that rounding hides "
        "it, 2^-9 in bf16, 2^-13 in fp16, 0 in fp32 (docs/sparse.md); 0: none.",
    )

    def __post_init__(self) -> None:
        loss: Any = self.loss
        if isinstance(loss, dict):
            self.loss = json.dumps(loss)
        super().__post_init__()
        self._read_numbers()
        if isinstance(self.loss_kwargs, str):
            self.loss_kwargs = _parse_json("loss_kwargs", self.loss_kwargs)
        self.hyperparameters()

    def _read_numbers(self) -> None:
        """Turn the options that are a number or a name from the text of a command line into it."""
        names = get_args(LogZ0Estimate)
        expected = "'auto', 'logmeanexp' or a finite number of nats"
        self.log_z0 = _read("log_z0", self.log_z0, names, float, math.isfinite, expected)
        self.prefix_length = _read(
            "prefix_length",
            self.prefix_length,
            ("auto",),
            int,
            lambda length: length >= 1,
            "'auto' or at least 1",
        )
        self.grad_tolerance = _read(
            "grad_tolerance",
            self.grad_tolerance,
            ("auto",),
            float,
            lambda tolerance: 0.0 <= tolerance < 1.0,
            "'auto' or a probability in [0, 1)",
        )

    @property
    def spec(self) -> Loss:
        """The loss, or the sum of losses given as JSON of names and weights."""
        if self.loss.lstrip().startswith("{"):
            return LOSSES.combine(_parse_json("loss", self.loss), "loss")
        return LOSSES.find(self.loss)

    def hyperparameters(self) -> dict[str, Any]:
        """Return every hyperparameter of the loss; `log_z0` may be the name of an estimate."""
        named: dict[str, Any] = {"beta": self.beta, "prompt_term": self.prompt_term}
        given = {name: value for name, value in named.items() if value is not None}
        if "log_z0" in self.spec.defaults or self.log_z0 != "auto":
            given["log_z0"] = self.log_z0
        assert not isinstance(self.loss_kwargs, str)
        return self.spec.bind({**given, **(self.loss_kwargs or {})})

    def tolerance(self, dtype: torch.dtype) -> float:
        """Return the number that `grad_tolerance` stands for, with products in `dtype`."""
        if self.grad_tolerance == "auto":
            return HIDDEN_BY_ROUNDING.get(dtype, 0.0)
        return self.grad_tolerance

    def engine_options(self) -> EngineOptions:
        """Return the options of the op that hold for policy and reference."""
        return EngineOptions(workspace_bytes=self.workspace_bytes, backend=self.backend)


def check_runnable(args: RAOConfig, *, rollouts: bool = False) -> None:
    """Raise if this loss cannot be trained, before the data is scored.

    rollouts: True where the model in training samples the responses.
    """
    for spec, bound in args.spec.bound_parts(args.hyperparameters()):
        if bound.get("on_policy") and not rollouts:
            raise InputError(
                "on_policy",
                f"False for {spec.name!r}: the responses were sampled before this training, by a "
                "policy whose log-probs the ratio needs",
                True,
            )
    needs = args.spec.required_inputs(args.hyperparameters())
    if "ref_token_logps" in needs and not args.ref_per_token:
        expected = f"True: the loss {args.loss!r} reads the reference per token"
        raise InputError("ref_per_token", expected, False)
    if args.value_model != "head" and "values" not in needs:
        expected = f"'head' for the loss {args.loss!r}, which reads no values"
        raise InputError("value_model", expected, repr(args.value_model))
    if unmet := unmet_needs(needs, rollouts=rollouts):
        raise InputError(
            "loss",
            "a loss that learns from records",
            f"{args.loss!r}, which needs {', '.join(unmet)} of responses that the policy has just "
            "sampled",
            "Train it with `rao-kernels online`.",
        )


def _read(
    option: str,
    value: Any,
    names: tuple[str, ...],
    kind: Callable[[str], Any],
    in_range: Callable[[Any], bool],
    expected: str,
) -> Any:
    """Return `value`, a number or its text, as a number, or as it is if it is one of `names`."""
    if value in names:
        return value
    try:
        number = kind(str(value))
    except ValueError:
        number = None
    if number is None or not in_range(number):
        raise InputError(option, expected, repr(value))
    return number


def _parse_json(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(name, "a JSON object", repr(text)) from error
    if not isinstance(value, dict):
        raise InputError(name, "a JSON object", repr(text))
    return value
