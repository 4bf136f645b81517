"""Check an installed rao_kernels: its CPU library loads, and the op agrees with plain torch.

`python .ci/check_wheel.py`, in an environment that has the wheel and torch; wheels.yml runs it on
each wheel. It needs no other package.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

import rao_kernels as rk
from rao_kernels import backends

ROWS, VOCABULARY, SIZE = 40, 3000, 48


def log_probs_and_gradients(backend: str | None, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the log-probs and both gradients; `backend` None is plain torch in float64."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(rows, SIZE, generator=generator).to(dtype) for rows in (ROWS, VOCABULARY)
    )
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    if backend is None:
        hidden, weight = hidden.double(), weight.double()
    hidden.requires_grad_()
    weight.requires_grad_()
    if backend is None:
        logits = hidden @ weight.T
        log_probs = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    else:
        log_probs = rk.linear_logprobs(hidden, weight, targets, backend=backend)
    gradients = torch.autograd.grad(log_probs.sum(), (hidden, weight))
    return [log_probs.detach().double(), *(one.double() for one in gradients)]


def check_op() -> None:
    """Compare the `cpu` backend with float64, to a few roundings of the results' dtypes."""
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)):
        if reason := backends.reasons(torch.device("cpu"), dtype)["cpu"]:
            sys.exit(f"backend 'cpu' does not run in {dtype}: {reason}")
        truth = log_probs_and_gradients(None, dtype)
        for name, got, true in zip(
            ("log-probs", "dhidden", "dweight"),
            log_probs_and_gradients("cpu", dtype),
            truth,
            strict=True,
        ):
            error = float((got - true).abs().max() / true.abs().max())
            print(f"{dtype} {name}: relative error {error:.1e}, at most {allowed:.0e} allowed")
            if not error <= allowed:
                sys.exit(f"the {name} in {dtype} are wrong")


def check_files() -> None:
    """Look for what must be in the package, and what must not."""
    package = Path(rk.__file__).parent
    if not (package / "py.typed").exists():
        sys.exit(f"{package} has no py.typed")
    if found := sorted(map(str, package.rglob("test_*.py"))):
        sys.exit(f"tests are installed with the package: {', '.join(found)}")


if __name__ == "__main__":
    print(f"rao_kernels {rk.__version__} in {Path(rk.__file__).parent}, torch {torch.__version__}")
    check_files()
    check_op()
    for command in ("doctor", "losses"):
        subprocess.run([sys.executable, "-m", "rao_kernels.cli", command], check=True)
