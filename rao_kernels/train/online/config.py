"""`OnlineConfig`: settings of training on responses that the model itself samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from ..config import RAOConfig
from ..config import _option as option

# Schedules of the learning rate that follow `metric_for_best_model`.
_BY_METRIC = ("reduce_lr_on_plateau", "greedy")
# Ranges of settings: name -> lowest value, whether that is excluded, and the highest.
_RANGES: dict[str, tuple[float, bool, float]] = {
    "responses_per_prompt": (1, False, math.inf),
    "inner_epochs": (1, False, math.inf),
    "max_new_tokens": (1, False, math.inf),
    "sampling_batch_size": (1, False, math.inf),
    "refresh_reference_every": (0, False, math.inf),
    "temperature": (0, True, math.inf),
    "top_p": (0, True, 1),
    "top_k": (0, False, math.inf),
    "kl_coef": (0, False, math.inf),
    "gamma": (0, False, 1),
    "gae_lambda": (0, False, 1),
}


@dataclass
class OnlineConfig(RAOConfig):
    """Settings of `OnlineTrainer`, beside those of `RAOConfig`.

    Batch sizes count prompts, each with all its responses. `num_train_epochs` counts passes over
    the prompts, and is used where neither `rounds` nor `max_steps` is given.

    Raises:
        InputError: a setting is out of range, or settings do not work together.
    """

    prompts_per_round: int | None = option(
        None,
        "Prompts that responses are sampled to in a round, on all devices together (default: as "
        "many as an optimizer step takes).",
    )
    responses_per_prompt: int = option(8, "Responses sampled to each prompt.")
    inner_epochs: int = option(1, "Passes over a round's responses before new ones are sampled.")
    rounds: int | None = option(None, "Rounds of the run; beside max_steps, which counts steps.")
    max_new_tokens: int = option(256, "Most tokens of a response, its end included.")
    temperature: float = option(
        1.0, "Divides the logits in sampling, and in the losses that have a probability ratio."
    )
    top_p: float = option(1.0, "Smallest probability mass that is sampled from.")
    top_k: int = option(0, "Number of tokens that are sampled from; 0: all.")
    sampling_batch_size: int = option(16, "Prompts per device that are sampled to at once.")
    refresh_reference_every: int = option(
        0,
        "Rounds after which the policy becomes the reference; 1: it is the policy at the start of "
        "each round; 0: the reference stays what it was.",
    )
    mask_truncated_completions: bool = option(
        False, "Leave the tokens of responses that were cut at max_new_tokens out of the loss."
    )
    kl_coef: float = option(0.05, "PPO: weight of the KL to the reference in the reward.")
    gamma: float = option(1.0, "PPO: discount per token.")
    gae_lambda: float = option(0.95, "PPO: lambda of generalised advantage estimation.")
    whiten_advantages: bool = option(
        True, "PPO: shift and scale a round's advantages to mean 0 and deviation 1."
    )

    def __post_init__(self) -> None:
        # Log-ratios are then sums of differences per token, and rounds are kept in files anyway.
        self.ref_per_token = True
        kind = str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type))
        by_metric = kind in _BY_METRIC
        if self.metric_for_best_model is None and (by_metric or self.load_best_model_at_end):
            self.metric_for_best_model = "reward/mean"
        if self.metric_for_best_model in ("loss", "eval_loss"):
            expected = "'reward/mean' or another metric of an evaluation, which has no loss"
            raise InputError("metric_for_best_model", expected, repr(self.metric_for_best_model))
        super().__post_init__()
        if by_metric and self.greater_is_better:
            # Their default is a metric that should become smaller.
            given: Any = self.lr_scheduler_kwargs or {}
            self.lr_scheduler_kwargs = {"mode": "max", **given}
        for name, (low, excluded, high) in _RANGES.items():
            _check_range(name, getattr(self, name), low, excluded, high)
        for name in ("rounds", "prompts_per_round"):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), 1, False, math.inf)
        if self.rounds is not None and self.max_steps > 0:
            raise InputError("max_steps", "none beside rounds", self.max_steps, "Give one of them.")
        if self.max_new_tokens >= self.max_length:
            expected = f"above max_new_tokens={self.max_new_tokens}, to hold prompts too"
            raise InputError("max_length", expected, self.max_length)

    @property
    def prompts_per_step(self) -> int:
        """Prompts of an optimizer step, on all devices."""
        size = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return size * int(self.world_size)

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps of a round."""
        return self.inner_epochs * (self.round_size // self.prompts_per_step)

    @property
    def round_size(self) -> int:
        """Prompts of a round, on all devices.

        Raises:
            InputError: they do not make whole steps.
        """
        asked = self.prompts_per_round
        if asked is None:
            return self.prompts_per_step
        if asked % self.prompts_per_step:
            raise InputError(
                "prompts_per_round",
                f"a multiple of {self.prompts_per_step}, the prompts of a step "
                "(per_device_train_batch_size x gradient_accumulation_steps x devices)",
                asked,
            )
        return asked

    @property
    def estimates_advantages(self) -> bool:
        """Whether advantages are estimated from values of tokens, as PPO's are."""
        return "advantages" in self.spec.required_inputs(self.hyperparameters())

    @property
    def sampled_temperature(self) -> float:
        """The temperature of the loss's log-probs: of sampling where it has a ratio to it, else 1.

        A policy gradient is of the distribution that is sampled from.
        """
        return self.temperature if "old_token_logps" in self.spec.needs else 1.0


def _check_range(name: str, value: Any, low: float, excluded: bool, high: float) -> None:
    if not ((low < value if excluded else low <= value) and value <= high):
        expected = f"a number {'above' if excluded else 'of at least'} {low:g}"
        expected += f" and at most {high:g}" if high < math.inf else ""
        raise InputError(name, expected, value)
