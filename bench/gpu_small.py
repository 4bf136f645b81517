"""Run every path of the GPU backends once, for a sanitizer or a profiler.

D (--size) chooses the kernels of Triton: fused up to some 2,000, unfused above (forms.json).
"""

from __future__ import annotations

import argparse

import torch

from rao_kernels import backends
from rao_kernels.ops import linear_token_stats

BACKENDS = ("cuda", "triton")
EVERYTHING = {"logit_softcap": 15.0, "logit_scale": 0.7}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=37)
    parser.add_argument("--vocabulary", type=int, default=9001)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    device, dtype = torch.device("cuda"), torch.bfloat16
    hidden = torch.randn(options.rows, options.size, device=device, dtype=dtype)
    weight = torch.randn(options.vocabulary, options.size, device=device, dtype=dtype)
    bias = torch.randn(options.vocabulary, device=device, dtype=dtype)
    targets = torch.randint(0, options.vocabulary, (options.rows,), device=device)
    targets[::3] = -100
    for backend in BACKENDS:
        if reason := backends.reasons(device, dtype)[backend]:
            print(f"not {backend}: {reason}")
            continue
        for workspace in (None, 0):
            for keywords, stats in (({}, ()), ({"bias": bias, **EVERYTHING}, None)):
                run(backend, workspace, hidden, weight, targets, keywords, stats)
                print(f"ran {backend}, workspace {workspace}, {len(keywords)} extras")


def run(
    backend: str,
    workspace: int | None,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    keywords: dict[str, object],
    stats: tuple[str, ...] | None,
) -> None:
    """Forward and backward; stats None: all of them."""
    asked = {} if stats is None else {"stats": stats}
    leaves = [tensor.detach().requires_grad_() for tensor in (hidden, weight)]
    found = linear_token_stats(
        *leaves, targets, backend=backend, workspace_bytes=workspace, **asked, **keywords
    )
    total = found.logps.sum() if found.entropy is None else (found.logps + found.entropy).sum()
    torch.autograd.grad(total, leaves)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
