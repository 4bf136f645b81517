"""The tensors of a case, and the float64 results that its providers are compared with.

Legend: N scored rows, V vocabulary, D hidden size, S sequences of T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import SequenceBatch
from ..losses import LOSSES
from . import peaked
from .cases import OP, Case

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SEQUENCES = 8  # four prompts with two responses each
TILE = 16384  # vocabulary entries that are widened to float64 at a time
MATRICES = 5  # float64 matrices [N, V] alive at once while an answer is computed
REAL_TEXT = Path("data") / "probe_train.safetensors"
# Pair losses run without a reference model, because Liger takes no cached reference log-probs and
# would run another forward. KTO's small beta keeps its sigmoid from saturating without one.
HYPER: dict[str, dict[str, Any]] = {
    "rao": {"beta": 0.1, "log_z0": 0.0},
    "sigmoid": {"beta": 0.1},
    "simpo": {"beta": 2.0, "gamma": 0.5},
    "grpo": {},
    "kto": {"beta": 1e-3},
    "sft": {},
}


@dataclass(frozen=True)
class Truth:
    """The exact result, from float64: log-probs ``[N]`` or the loss, and gradients in float32.

    tolerance: error of a loss that the errors of plain torch's log-probs can cause, to first order,
    ``sum |dloss / dlogp| max |error|``; plain torch's own error may be less by cancellation.
    """

    value: Tensor
    dhidden: Tensor
    dweight: Tensor
    tolerance: float = 0.0


@dataclass(frozen=True)
class Problem:
    """hidden ``[N, D]`` (of a loss ``[S, T, D]``), weight ``[V, D]``.

    targets, upstream (the gradient of the log-probs): ``[N]``, of the op.
    input_ids, completion_mask: ``[S, T]`` of a loss, groups ``[S]``; inputs: what else it reads.
    """

    task: str
    softcap: float | None
    hidden: Tensor
    weight: Tensor
    truth: Truth
    targets: Tensor
    upstream: Tensor | None = None
    input_ids: Tensor | None = None
    completion_mask: Tensor | None = None
    groups: Tensor | None = None
    inputs: dict[str, Tensor] | None = None

    @property
    def batch(self) -> SequenceBatch:
        assert self.input_ids is not None and self.completion_mask is not None
        return SequenceBatch.from_padded(self.input_ids, self.completion_mask, groups=self.groups)

    @property
    def loss_inputs(self) -> dict[str, Tensor]:
        assert self.inputs is not None
        return self.inputs

    @property
    def hyper(self) -> dict[str, Any]:
        return HYPER[self.task]

    def save(self, path: Path) -> None:
        torch.save({**vars(self), "truth": vars(self.truth)}, path)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Problem:
        """Load a problem: operands are copied to the device, the exact result stays mapped
        from the file."""
        stored = torch.load(path, mmap=True, weights_only=True)
        problem = cls(**{**stored, "truth": Truth(**stored["truth"])})
        moved: dict[str, Any] = {
            field.name: value.to(device, copy=True)
            for field in fields(cls)
            if isinstance(value := getattr(problem, field.name), Tensor)
        }
        if problem.inputs is not None:
            moved["inputs"] = {name: value.to(device) for name, value in problem.inputs.items()}
        return replace(problem, **moved)


def make(case: Case, device: str, shared: Path) -> Problem:
    """Make the problem of a case, in its size for the device; tensors are on the CPU."""
    rows, dtype, head = case.rows[device], DTYPES[case.dtype], case.head
    length = rows // SEQUENCES
    if case.logits == "real":
        hidden, weight, targets = real_text(shared, dtype)
        if case.task == OP:
            return op_problem(hidden, weight, targets, None)
        return real_loss_problem(case.task, hidden, weight, targets, length)
    if case.logits == "peaked":
        unscaled, weight = peaked.operands(rows, head, dtype, _workplace(rows, head.vocabulary))
        hidden, targets = peaked.scaled(unscaled, weight)
        return op_problem(hidden.cpu(), weight.cpu(), targets.cpu(), head.softcap)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(head.vocabulary, head.size, generator=generator).div_(head.size**0.5)
    if case.task == OP:
        hidden = torch.randn(rows, head.size, generator=generator)
        targets = torch.randint(head.vocabulary, (rows,), generator=generator)
        return op_problem(hidden.to(dtype), weight.to(dtype), targets, head.softcap)
    return loss_problem(case.task, weight.to(dtype), length, case.prompt)


def has_data(case: Case, shared: Path) -> bool:
    """Return False where the case needs the hidden states of real text and `shared` lacks them."""
    return case.logits != "real" or (shared / REAL_TEXT).exists()


def real_text(shared: Path, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden, weight, targets: final hidden states of SmolLM2-135M-Instruct on preference
    data, and its tied head."""
    from safetensors.torch import load_file

    data = load_file(shared / REAL_TEXT)
    head = load_file(shared / "models" / "smollm2-135m-instruct" / "embed.safetensors")
    codes, scales = (head[f"model.embed_tokens.weight.{part}"] for part in ("q8", "d"))
    blocks = codes.view(*scales.shape, -1).float() * scales.float()[..., None]
    scored = data["labels"] != -100
    weight = blocks.reshape(codes.shape).to(dtype)
    return data["hidden"][scored].to(dtype), weight, data["labels"][scored]


def op_problem(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Problem:
    """Make a problem of the op; the gradient of the log-probs is a normal sample."""
    generator = torch.Generator().manual_seed(0)
    upstream = torch.randn(len(targets), generator=generator) / len(targets)
    truth = _exact(hidden, weight, targets, softcap, lambda logps: (logps, upstream.double()))
    return Problem(OP, softcap, hidden, weight, truth, targets, upstream)


def loss_problem(task: str, weight: Tensor, length: int, prompt: bool) -> Problem:
    """Make a problem of a loss: pairs of responses of `length` tokens, after as long a prompt or a
    single first token.

    All responses are of one length, because some providers compute padding and others do not.
    """
    generator = torch.Generator().manual_seed(1)
    start = length if prompt else 1
    ids = torch.randint(len(weight), (SEQUENCES, start + length), generator=generator)
    ids[1::2, :start] = ids[::2, :start]
    hidden = torch.randn(*ids.shape, weight.shape[1], generator=generator).to(weight.dtype)
    return _loss_problem(task, hidden, weight, ids, start, generator)


def real_loss_problem(
    task: str, hidden: Tensor, weight: Tensor, targets: Tensor, length: int
) -> Problem:
    """Make the problem of a loss from real hidden states: responses of consecutive ones, each after
    a single first token."""
    ids = torch.zeros(SEQUENCES, 1 + length, dtype=torch.int64)
    ids[:, 1:] = targets[: SEQUENCES * length].view(SEQUENCES, length)
    last = hidden.new_zeros(SEQUENCES, 1, hidden.shape[1])  # predicts nothing
    rows = hidden[: SEQUENCES * length].view(SEQUENCES, length, -1)
    generator = torch.Generator().manual_seed(1)
    return _loss_problem(task, torch.cat([rows, last], 1), weight, ids, 1, generator)


def _loss_problem(
    task: str, hidden: Tensor, weight: Tensor, ids: Tensor, start: int, generator: torch.Generator
) -> Problem:
    """Make a problem whose responses begin at token `start`; its inputs and its result come from
    exact log-probs."""
    problem = Problem(
        task,
        None,
        hidden,
        weight,
        Truth(hidden.new_zeros(()), hidden, weight),
        targets=ids.new_empty(0),
        input_ids=ids,
        completion_mask=(torch.arange(ids.shape[1]) >= start).expand_as(ids).contiguous(),
        groups=torch.arange(SEQUENCES) // 2,
    )
    batch, flat = problem.batch, problem.hidden.flatten(0, 1)
    prompts = exact_logps(flat[batch.prompt_rows], problem.weight, batch.prompt_targets)
    rows, targets = flat[batch.response_rows], batch.response_targets
    inputs, tolerance = dict[str, Tensor](), 0.0

    def loss_of(logps: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal tolerance
        off = plain_logps(rows, problem.weight, targets, None).double() - logps
        inputs.update(_inputs(problem, logps, prompts, generator))
        given = batch.row_loss_inputs(logps.requires_grad_(), prompts, **inputs)
        loss = LOSSES[problem.task](given, **problem.hyper).loss
        (dlogps,) = torch.autograd.grad(loss, logps)
        tolerance = float(dlogps.abs().sum() * off.abs().max())
        return loss.detach(), dlogps

    truth = _exact(rows, problem.weight, targets, None, loss_of)
    dhidden = torch.zeros(flat.shape).index_copy(0, batch.response_rows, truth.dhidden)
    truth = replace(truth, dhidden=dhidden.view(problem.hidden.shape), tolerance=tolerance)
    return replace(problem, truth=truth, inputs=inputs)


def _inputs(
    problem: Problem, logps: Tensor, prompts: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the other inputs of the loss: a reference and an old policy near the current one."""
    batch = problem.batch
    found = batch.row_loss_inputs(logps, prompts)
    zeros = torch.zeros(SEQUENCES)
    preferred = torch.arange(SEQUENCES) % 2 == 0
    if problem.task == "rao":
        return {
            "rewards": torch.randn(SEQUENCES, generator=generator),
            "ref_logps": found.logps.float() - 5 * torch.randn(SEQUENCES, generator=generator),
            "ref_prompt_logps": found.require("prompt_logps").float() + 1.0,
        }
    if problem.task == "grpo":
        old = torch.zeros(problem.completion_mask.numel())  # type: ignore[union-attr]
        # Little noise, so that no ratio is clipped: rows without a gradient could be skipped.
        noise = 0.04 * torch.randn(len(logps), generator=generator)
        old[batch.response_rows] = logps.float() + noise
        shape = batch.token_shape
        advantages = torch.randn(SEQUENCES, generator=generator)
        return {"advantages": advantages, "old_token_logps": old.view(shape)}
    if problem.task == "kto":
        references = ("ref_logps", "kl_logps", "ref_kl_logps")
        return {"preferred": preferred, **dict.fromkeys(references, zeros)}
    if problem.task == "sigmoid":
        return {"preferred": preferred, "ref_logps": zeros}
    return {"preferred": preferred} if problem.task == "simpo" else {}


def plain_logps(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """Return log-probs ``[N]`` as a model and its trainer compute them: logits and softcap in the
    operands' dtype, log_softmax in fp32, gather."""
    logits = capped(hidden @ weight.T, softcap).float()
    return torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _tiles(weight: Tensor) -> list[slice]:
    return [slice(start, start + TILE) for start in range(0, len(weight), TILE)]


def _workplace(rows: int, vocabulary: int) -> torch.device:
    """Return the GPU where it has memory for the matrices of an answer, else the CPU."""
    needed = MATRICES * 8 * rows * vocabulary
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > needed:
        return torch.device("cuda")
    return torch.device("cpu")


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply in float64, on the GPU where there is one; the product is where `a` is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (a.to(device).double() @ b.to(device).double()).to(a.device)


def _exact_logits(hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    """Return logits ``[N, V]`` in float64; the weight is converted tile by tile."""
    logits = hidden.new_empty(len(hidden), len(weight), dtype=torch.float64)
    for tile in _tiles(weight):
        logits[:, tile] = _product(hidden, weight[tile].T)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def exact_logps(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None
) -> Tensor:
    """Return log-probs ``[N]`` of the targets in float64."""
    logits = _exact_logits(hidden, weight, softcap)
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)


def _exact(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    value_of: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Truth:
    """Return the exact result, on the CPU; `value_of` maps log-probs to a value and its gradient
    ``[N]``, on the CPU too."""
    device = _workplace(len(hidden), len(weight))
    hidden, targets = hidden.to(device), targets.to(device)
    logits = _exact_logits(hidden, weight, softcap)
    log_sum = logits.logsumexp(1)
    logps = logits.gather(1, targets[:, None]).squeeze(1) - log_sum
    value, dlogps = value_of(logps.cpu())
    slope = None if softcap is None else 1 - (logits / softcap).square()
    dz = logits.sub_(log_sum[:, None]).exp_().neg_()
    dz.scatter_add_(1, targets[:, None], dz.new_ones(len(targets), 1))
    dz *= dlogps.to(device)[:, None]
    if slope is not None:
        dz *= slope
    dhidden = torch.zeros_like(hidden, dtype=torch.float64)
    dweight = torch.empty(weight.shape)
    for tile in _tiles(weight):
        dhidden += _product(dz[:, tile], weight[tile])
        dweight[tile] = _product(dz[:, tile].T, hidden).float().cpu()
    return Truth(value, dhidden.float().cpu(), dweight)
