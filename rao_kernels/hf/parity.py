"""Parity check: compare the fused head's log-probs with those of the model's own logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .transforms import HeadTransform

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Legend: B sequences, T tokens, V vocabulary, D hidden.
_PROBE_SHAPE = (2, 8)
_ENTRIES_AT_ONCE = 8192  # vocabulary entries of the head converted to float64 at a time

_Tap = Callable[[nn.Linear, Tensor], Tensor | None]


@dataclass(frozen=True)
class _Runs:
    """Results of three runs of the model over the same tokens.

    fused: log-probs from the op. exact, plain: the model's own logits, its head computed in float64
    and as the head computes them, both on the hidden states that the op was given. raw: the float64
    head output before the model's transforms. hidden_gap, hidden_noise: largest difference of the
    head's input from the trunk's output, and from itself in a second run.
    """

    targets: Tensor
    fused: Tensor
    exact: Tensor
    plain: Tensor
    raw: Tensor
    hidden: Tensor
    hidden_gap: float
    hidden_noise: float
    aux_loss_is_missing: bool


def find_difference(
    model: PreTrainedModel, linears: Sequence[nn.Linear], transform: HeadTransform
) -> str | None:
    """Describe how fused log-probs differ from the logits path; None when they agree.

    The error against float64 logits may be twice that of the model's own logits in their dtype.
    Needs real weights; runs in eval mode, without gradient and without random numbers.
    """
    with torch.no_grad(), _eval_mode(model):
        runs = _run(model, linears)
    if isinstance(runs, str):
        return runs
    return _hidden_difference(runs) or _logp_difference(runs, transform)


def _run(model: PreTrainedModel, linears: Sequence[nn.Linear]) -> _Runs | str:
    ids = _probe_ids(model, linears[0])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    targets = ids.roll(1, dims=1)
    seen: list[Tensor] = []
    raw: list[Tensor] = []

    def watch(linear: nn.Linear, hidden: Tensor) -> None:
        seen.append(hidden)

    def exact_head(linear: nn.Linear, hidden: Tensor) -> Tensor:
        seen.append(hidden)
        raw.append(_linear_float64(seen[0], linear))
        return raw[0]

    def plain_head(linear: nn.Linear, hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return nn.Linear.forward(linear, seen[0])

    with _tapped(linears, watch):
        fused = model(**inputs, logp_targets=targets)
    with _tapped(linears, exact_head):
        exact = model(**inputs, use_cache=False)
    with _tapped(linears, plain_head):
        plain = model(**inputs, use_cache=False)
    if len(seen) != 3 or len({hidden.shape for hidden in seen}) != 1:
        return "the model does not call its head once, on hidden states [B, T, D]"
    if exact.logits.shape[-1] != linears[0].out_features:
        return (
            f"the model's logits have {exact.logits.shape[-1]} columns, "
            f"its head {linears[0].out_features}"
        )
    first, second, third = (hidden.flatten().double() for hidden in seen)
    return _Runs(
        targets=targets,
        fused=fused.token_logps.double(),
        exact=exact.logits,
        plain=plain.logits,
        raw=raw[0],
        hidden=seen[0],
        hidden_gap=float((second - first).abs().max()),
        hidden_noise=float((second - third).abs().max()),
        aux_loss_is_missing=fused.aux_loss is None and getattr(exact, "aux_loss", None) is not None,
    )


def _hidden_difference(runs: _Runs) -> str | None:
    rounding = torch.finfo(runs.hidden.dtype).eps * float(runs.hidden.abs().max())
    if runs.hidden_gap > 4 * (runs.hidden_noise + rounding):
        return (
            "the model changes the trunk's last hidden states before its head sees them "
            f"(largest change {runs.hidden_gap:.3g})"
        )
    if runs.aux_loss_is_missing:
        return "the model returns an aux_loss that cannot be computed from its trunk's output"
    return None


def _logp_difference(runs: _Runs, transform: HeadTransform) -> str | None:
    reference = torch.log_softmax(runs.exact.double(), dim=-1)
    plain_error = (torch.log_softmax(runs.plain.double(), dim=-1) - reference).abs().max()
    wanted = reference.gather(-1, runs.targets.unsqueeze(-1)).squeeze(-1)
    error = (runs.fused - wanted).abs()
    # The last bits of the results' own dtypes: fp32 log-probs; models that narrow exact logits.
    eps = max(torch.finfo(torch.float32).eps, torch.finfo(runs.exact.dtype).eps)
    limit = 2 * float(plain_error) + 8 * eps * (1 + float(runs.exact.abs().max()))
    worst = int(error.nan_to_num(nan=torch.inf).argmax())
    if float(error.flatten()[worst]) <= limit:
        return None
    return (
        f"log-prob {float(runs.fused.flatten()[worst]):.6g} from the fused head where the model's "
        f"logits give {float(wanted.flatten()[worst]):.6g} (allowed error {limit:.3g}): "
        f"{_likely_cause(runs, transform)}"
    )


def _likely_cause(runs: _Runs, transform: HeadTransform) -> str:
    ours, theirs = (_centred(z) for z in (transform(runs.raw), runs.exact.double()))
    ratio = float((ours * theirs).sum() / (ours * ours).sum())
    if float((theirs - ratio * ours).norm()) < 1e-3 * float(theirs.norm()):
        if abs(ratio - 1) < 1e-3:
            return "the transform is right, so the head's arithmetic differs"
        return f"the model's logits are {ratio:.4g} times those of {transform}"
    ordered = runs.exact.double().gather(-1, runs.raw.argsort(dim=-1)).diff(dim=-1)
    if float(ordered.min()) >= -1e-6 * float(runs.exact.abs().max()):
        return f"the model's logits are monotonic in those of {transform}, as with another softcap"
    return f"the model's logits are not a function of the head's output under {transform}"


def _centred(logits: Tensor) -> Tensor:
    """Subtract each position's mean: log-probs do not depend on a constant added to the logits."""
    return logits - logits.mean(dim=-1, keepdim=True)


def _probe_ids(model: PreTrainedModel, head: nn.Linear) -> Tensor:
    """Return fixed token ids ``[2, 8]`` spread over the vocabulary."""
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    entries = min(embedding.shape[0], head.out_features)
    count = _PROBE_SHAPE[0] * _PROBE_SHAPE[1]
    ids = (torch.arange(1, count + 1) * (entries // count + 1)) % entries
    return ids.view(_PROBE_SHAPE).to(embedding.device)


def _linear_float64(hidden: Tensor, linear: nn.Linear) -> Tensor:
    parts = torch.split(linear.weight, _ENTRIES_AT_ONCE)
    logits = torch.cat([F.linear(hidden.double(), part.double()) for part in parts], dim=-1)
    return logits if linear.bias is None else logits + linear.bias.double()


@contextmanager
def _tapped(linears: Sequence[nn.Linear], tap: _Tap) -> Iterator[None]:
    """Call ``tap(linear, hidden)`` after a head ran; a tensor it returns replaces the output."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: object) -> Tensor | None:
        assert isinstance(module, nn.Linear)
        return tap(module, args[0])

    with ExitStack() as stack:
        for linear in linears:
            stack.callback(linear.register_forward_hook(hook).remove)
        yield


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
