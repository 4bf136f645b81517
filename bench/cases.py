"""What is measured: head problems, and the float64 answers they are held to.

Legend: N rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Truth:
    """Float64 log-probs and gradients of ``sum(dlogp logps)``, kept as float32 gradients."""

    logps: Tensor
    dhidden: Tensor
    dweight: Tensor


@dataclass
class Case:
    """hidden ``[N, D]``, weight ``[V, D]``, targets ``[N]``, upstream gradient dlogp ``[N]``."""

    name: str
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    dlogp: Tensor

    @property
    def gemm_flops(self) -> int:
        """Operations of one of the three products."""
        return 2 * self.hidden.shape[0] * self.weight.numel()

    @cached_property
    def truth(self) -> Truth:
        """By full logits in float64, in blocks of rows."""
        weight = self.weight.double()
        logps, dhidden, dweight = [], [], torch.zeros_like(weight)
        for rows in torch.arange(self.hidden.shape[0]).split(256):
            hidden = self.hidden[rows].double()
            log_p = torch.log_softmax(hidden @ weight.T, -1)
            targets = self.targets[rows, None]
            logps.append(log_p.gather(1, targets).squeeze(1))
            dz = -log_p.exp()
            dz.scatter_add_(1, targets, torch.ones_like(targets, dtype=dz.dtype))
            dz *= self.dlogp[rows, None].double()
            dhidden.append((dz @ weight).float())
            dweight.addmm_(dz.T, hidden)
        return Truth(torch.cat(logps), torch.cat(dhidden), dweight.float())


def random(rows: int, size: int, vocabulary: int, dtype: torch.dtype) -> Case:
    """Flat logits: what an untrained head gives."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Case(
        f"random N={rows} D={size} V={vocabulary}",
        normal(rows, size).to(dtype),
        (normal(vocabulary, size) / size**0.5).to(dtype),
        torch.randint(0, vocabulary, (rows,), generator=generator),
        normal(rows) / rows,
    )


def probe(shared: Path, dtype: torch.dtype) -> Case:
    """Real final hidden states of SmolLM2-135M-Instruct on preference data, and its tied head."""
    from safetensors.torch import load_file

    data = load_file(shared / "data" / "probe_train.safetensors")
    head = load_file(shared / "models" / "smollm2-135m-instruct" / "embed.safetensors")
    codes, scales = (head[f"model.embed_tokens.weight.{part}"] for part in ("q8", "d"))
    blocks = codes.view(*scales.shape, -1).float() * scales.float()[..., None]
    rows = data["labels"] != -100
    generator = torch.Generator().manual_seed(0)
    return Case(
        "probe (SmolLM2-135M, real text)",
        data["hidden"][rows].to(dtype),
        blocks.reshape(codes.shape).to(dtype),
        data["labels"][rows],
        torch.randn(int(rows.sum()), generator=generator) / int(rows.sum()),
    )


def chosen(names: list[str], dtypes: list[str], shared: Path) -> Iterator[Case]:
    """The cases asked for, made one at a time."""
    for dtype in dtypes:
        for name in names:
            if name == "probe":
                yield probe(shared, DTYPES[dtype])
            else:
                yield random(1024, 1024, 65536, DTYPES[dtype])
