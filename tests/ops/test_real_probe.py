"""Real hidden states and a real head: peaked logits, float64 goldens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rao_kernels import backends
from rao_kernels.ops import linear_logprobs, linear_token_stats

pytest.importorskip("safetensors")
from safetensors.torch import load_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def probe(shared_dir: Path) -> dict[str, Tensor]:
    """Labelled rows of the probe, their goldens, and the fp32 head."""
    data = load_file(shared_dir / "data" / "probe_train.safetensors")
    head = load_file(shared_dir / "models" / "smollm2-135m-instruct" / "embed.safetensors")
    codes, scales = (head[f"model.embed_tokens.weight.{part}"] for part in ("q8", "d"))
    rows = data["labels"] != -100
    return {
        "hidden": data["hidden"][rows].float(),
        "weight": (codes.view(*scales.shape, -1) * scales.float()[..., None]).reshape(codes.shape),
        "targets": data["labels"][rows],
        "logps": data["target_logit_f64"][rows] - data["lse_f64"][rows],
        "entropy": data["entropy_f64"][rows],
        "mean_logits": data["logit_mean_f64"][rows],
        "lse": data["lse_f64"][rows],
    }


def some(probe: dict[str, Tensor], rows: int | None) -> dict[str, Tensor]:
    """The first rows, or all."""
    return {name: t if name == "weight" else t[:rows] for name, t in probe.items()}


# Rows: emulated tiles take their time.
@pytest.mark.parametrize(
    ("backend", "rows"), [("cpu", None), ("cpu-amx", 64), ("eager", None)], indirect=["backend"]
)
def test_fp32_against_the_goldens(probe: dict[str, Tensor], backend: str, rows: int | None) -> None:
    probe = some(probe, rows)
    if reason := backends.reasons(CPU, torch.float32)[backend]:
        pytest.skip(f"backend {backend!r}: {reason}")
    stats = linear_token_stats(probe["hidden"], probe["weight"], probe["targets"], backend=backend)
    assert float((stats.logps - probe["logps"]).abs().max()) < 5e-5
    assert float((stats.lse - probe["lse"]).abs().max()) < 5e-5
    assert float((stats.entropy - probe["entropy"]).abs().max()) < 5e-5
    assert float((stats.mean_logits - probe["mean_logits"]).abs().max()) < 5e-5
    assert (stats.logps <= 0).all() and (stats.entropy >= 0).all()


def truth(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Float64 log-probs, in blocks of rows."""
    wide = weight.double()
    blocks = [
        torch.log_softmax(h.double() @ wide.T, -1).gather(1, t[:, None]).squeeze(1)
        for h, t in zip(hidden.split(256), targets.split(256), strict=True)
    ]
    return torch.cat(blocks)


@pytest.mark.parametrize(
    ("backend", "rows"), [("cpu", 1024), ("cpu-amx", 256), ("eager", 1024)], indirect=["backend"]
)
def test_bf16_keeps_fp32_logits(probe: dict[str, Tensor], backend: str, rows: int) -> None:
    """Plain torch, whose logits are bf16, is off by more than 0.1 on the same operands."""
    if reason := backends.reasons(CPU, torch.bfloat16)[backend]:
        pytest.skip(f"backend {backend!r}: {reason}")
    probe = some(probe, rows)
    hidden, weight, targets = (
        probe["hidden"].bfloat16(),
        probe["weight"].bfloat16(),
        probe["targets"],
    )
    exact = truth(hidden, weight, targets)
    logps = linear_logprobs(hidden, weight, targets, backend=backend)
    assert float((logps - exact).abs().max()) < 1e-4
    plain = torch.log_softmax((hidden @ weight.T).float(), -1).gather(1, targets[:, None])
    assert float((plain.squeeze(1) - exact).abs().max()) > 0.05
