"""TRL's trainers on the op: replace the function that computes their token log-probs.

Since TRL 1.15 its DPO, KTO, SFT, GRPO and RLOO trainers take their token log-probs from one
autograd function, looked up at each call as ``trl.trainer.utils._ChunkedLogProbFunction``. `enable`
replaces it, so it works before or after a trainer is made; `status` tells whether it is replaced
and how often it was called.

Legend: N tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Unpack

import torch
from torch import Tensor

from ..errors import InputError, IntegrationError, MissingDependencyError
from ..ops import linear_token_stats
from ..types import EngineOptions
from ._precision import autocast_to_half, head_tensor

NAME = "_ChunkedLogProbFunction"
OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
OLDEST, NEXT_MAJOR = (1, 15), (2, 0)
ADVICE = "Install trl 1.16, or train without enable()."


def enable(**options: Unpack[EngineOptions]) -> None:
    """Make TRL's DPO, KTO, GRPO, RLOO and SFT trainers score tokens with the op.

    A second call changes the options and restarts the count of `status` at 0.

    Args:
        options: see `EngineOptions`; they apply to every trainer of this process.

    Raises:
        MissingDependencyError: TRL is not installed.
        IntegrationError: the installed TRL has another version, or its function another signature,
            than supported.

    Example:
        >>> from rao_kernels.integrations import trl as fused_trl
        >>> fused_trl.enable()
        >>> DPOTrainer(model, args=args, train_dataset=data, processing_class=tokenizer).train()
        >>> assert fused_trl.status().calls > 0
    """
    utils = _trl_utils()
    found = getattr(utils, NAME, None)
    original = found.original if isinstance(found, TokenLogProbs) else found
    _check_shape(original)
    setattr(utils, NAME, TokenLogProbs(original, options))


def disable() -> None:
    """Restore TRL's own function; without `enable` before, do nothing."""
    utils = _trl_utils()
    found = getattr(utils, NAME, None)
    if isinstance(found, TokenLogProbs):
        setattr(utils, NAME, found.original)


@dataclass(frozen=True)
class Status:
    """Result of `status`.

    enabled: True if TRL's trainers call the op. calls: number of calls since `enable`, without
    those from inside a compiled graph. options: the options given to `enable`.
    """

    enabled: bool
    calls: int = 0
    options: EngineOptions | None = None


def status() -> Status:
    """Return whether TRL's function is replaced now, and how often the op was called in its place.

    0 calls after a training step mean that its trainer does not use the function.
    """
    found = getattr(_trl_utils(), NAME, None)
    if not isinstance(found, TokenLogProbs):
        return Status(enabled=False)
    return Status(enabled=True, calls=found.calls, options=found.options)


@dataclass
class TokenLogProbs:
    """Replacement of TRL's autograd function `original`. calls: number of its calls."""

    original: Any
    options: EngineOptions
    calls: int = 0

    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = OUTPUTS,
    ) -> tuple[Tensor | None, ...]:
        """Return log-probs, entropy, log_sum_sq_probs, mean_logits and is_top1; None if not asked.

        ``y = logit_scale * (hidden @ weight.T + bias)``,
        ``logits = softcap * tanh(y / softcap) / temperature``

        Args:
            hidden: ``[N, D]``. weight: ``[V, D]``. bias: ``[V]``. targets: ``[N]`` int64.
            temperature: divides the logits.
            chunk_size: vocabulary entries per tile in TRL; ignored, the op chooses its own.
            final_logit_softcapping: softcap; None for none.
            logit_scale: multiplies the head's output before the softcap.
            outputs: names of the statistics requested.

        Returns:
            ``[N]`` float32, is_top1 bool; log-probs and entropy are differentiable.
        """
        # A number that changes at each call would make torch.compile recompile at each.
        if not torch.compiler.is_compiling():
            self.calls += 1
        scale, softcap = _op_scalars(temperature, final_logit_softcapping, logit_scale)
        with autocast_to_half(hidden):
            found = linear_token_stats(
                hidden,
                head_tensor(weight, hidden),
                targets,
                bias=None if bias is None else head_tensor(bias, hidden),
                logit_scale=scale,
                logit_softcap=softcap,
                stats=tuple(name for name in OUTPUTS if name in outputs),
                **self.options,
            )
        values = (found.entropy, found.log_sum_sq_probs, found.mean_logits)
        single = (None if value is None else value.float() for value in values)
        return found.logps.float(), *single, found.is_top1


def _op_scalars(
    temperature: float, softcap: float | None, scale: float
) -> tuple[float, float | None]:
    """Return the op's logit_scale and softcap.

    TRL scales before the softcap, the op after it:
    ``c tanh(s z / c) / T = (s / T) (c / s) tanh(z / (c / s))``.
    """
    _check_positive("temperature", temperature)
    _check_positive("logit_scale", scale)
    if softcap is None:
        return scale / temperature, None
    _check_positive("final_logit_softcapping", softcap)
    return scale / temperature, softcap / scale


def _check_positive(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(
            name,
            "a positive finite float",
            value,
            "The op does not support it; restore TRL's own function with disable().",
        )


def _trl_utils() -> ModuleType:
    try:
        import trl
        from packaging.version import Version
        from trl.trainer import utils
    except ImportError as error:
        raise MissingDependencyError("trl", "trl") from error
    if not OLDEST <= Version(trl.__version__).release[:2] < NEXT_MAJOR:
        raise IntegrationError("trl from 1.15 on and before 2", f"trl {trl.__version__}", ADVICE)
    return utils


def _check_shape(function: Any) -> None:
    """Raise unless `function` has the parameters of `TokenLogProbs.apply`."""
    import trl

    expected, forward = _parameters(TokenLogProbs.apply), getattr(function, "forward", None)
    found = None if forward is None else _parameters(forward)
    if found == expected:
        return
    got = (
        f"{function!r}, which has no forward," if found is None else f"a forward({_listed(found)})"
    )
    without_triton = " (None without Triton, before 1.16)" if function is None else ""
    raise IntegrationError(
        f"trl.trainer.utils.{NAME} with a forward({_listed(expected)})",
        f"{got} in trl {trl.__version__}{without_triton}",
        ADVICE,
    )


def _parameters(function: Any) -> list[tuple[str, Any]]:
    """Return names and defaults without the first parameter (`self` or `ctx`)."""
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.default) for parameter in parameters][1:]


def _listed(parameters: list[tuple[str, Any]]) -> str:
    return ", ".join(
        name if default is inspect.Parameter.empty else f"{name}={default!r}"
        for name, default in parameters
    )
