"""Write the tables between marks in docs/sparse.md, measured on real rows.

The rows and the head are SmolLM2-135M-Instruct's, in a folder `shared` beside the project.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import torch
from safetensors.torch import load_file
from torch import Tensor

from rao_kernels import EngineOptions, linear_logprobs
from rao_kernels.backends import Head
from rao_kernels.engine import Sparsity, evenly_spaced, make_plan, order_vocabulary, record_work
from rao_kernels.engine import sample as sample_of
from rao_kernels.engine.sparsity import in_order, needed_rows

PAGE = Path(__file__).with_name("sparse.md")
SHARED = Path(__file__).resolve().parents[2] / "shared"
POWERS = {
    torch.bfloat16: range(5, 13),
    torch.float16: range(9, 15),
    torch.float32: range(15, 26, 2),
}
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
TOLERANCE = 2.0**-9
WIDTHS = {512: "512", 1024: "1,024 (a CPU's tiles)", 2048: "2,048", 4096: "4,096 (a GPU's)"}
CALLS = 14


@dataclass(frozen=True)
class Rows:
    """hidden ``[N, D]``, weight ``[V, D]``, targets ``[N]``, upstream gradient dlogp ``[N]``."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    dlogp: Tensor

    def to(self, dtype: torch.dtype) -> Rows:
        return Rows(self.hidden.to(dtype), self.weight.to(dtype), self.targets, self.dlogp)


def probe(shared: Path) -> Rows:
    data = load_file(shared / "data" / "probe_train.safetensors")
    head = load_file(shared / "models" / "smollm2-135m-instruct" / "embed.safetensors")
    codes, scales = (head[f"model.embed_tokens.weight.{part}"] for part in ("q8", "d"))
    weight = (codes.view(*scales.shape, -1) * scales.float()[..., None]).reshape(codes.shape)
    keep = data["labels"] != -100
    torch.manual_seed(0)
    hidden, targets = data["hidden"][keep].float(), data["labels"][keep]
    return Rows(hidden, weight, targets, torch.randn(len(targets)))


def dense(rows: Rows) -> tuple[Tensor, Tensor]:
    """dhidden and dweight by full logits in the operands' dtype, log-softmax in at least fp32; in
    blocks of rows only in fp64."""
    hidden, weight = (t.clone().requires_grad_() for t in (rows.hidden, rows.weight))
    for part in torch.arange(len(hidden)).split(512 if hidden.dtype == torch.float64 else 10**9):
        z = hidden[part] @ weight.T
        log_p = torch.log_softmax(z if z.dtype == torch.float64 else z.float(), -1)
        logps = log_p.gather(1, rows.targets[part, None]).squeeze(1)
        (logps * rows.dlogp[part]).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return hidden.grad, weight.grad


def op(rows: Rows, **options: Unpack[EngineOptions]) -> tuple[Tensor, Tensor, float]:
    """dhidden, dweight, and the share of pairs of row and tile that stayed."""
    hidden, weight = (t.clone().requires_grad_() for t in (rows.hidden, rows.weight))
    with record_work() as work:
        logps = linear_logprobs(hidden, weight, rows.targets, **options)
        dhidden, dweight = torch.autograd.grad((logps * rows.dlogp).sum(), (hidden, weight))
    return dhidden, dweight, work.row_tiles_kept / work.row_tiles


def relative(got: Tensor, truth: Tensor) -> float:
    return float((got.double() - truth.double()).norm() / truth.double().norm())


def errors(rows: Rows) -> Iterator[str]:
    """A row of the table for each dtype and tolerance. Truth is fp64 of the rounded operands."""
    for dtype, powers in POWERS.items():
        rounded = rows.to(dtype)
        truth = dense(rounded.to(torch.float64))
        # A CPU without fp16 products takes an hour for plain torch's.
        if dtype != torch.float16:
            yield error_row(dtype, "plain torch", "", dense(rounded), truth)
        for power in (None, *powers):
            tolerance = 0.0 if power is None else 2.0**-power
            *found, kept = op(rounded, grad_tolerance=tolerance)
            name = "0" if power is None else f"2^-{power}"
            yield error_row(dtype, name, f"{kept:.3f}", found, truth)


def error_row(
    dtype: torch.dtype, name: str, kept: str, found: Iterable[Tensor], truth: Iterable[Tensor]
) -> str:
    cells = [f"{relative(a, b):.2e}" for a, b in zip(found, truth, strict=True)]
    return f"| {NAMES[dtype]} | {name} | {kept} | {' | '.join(cells)} |"


def head_of(rows: Rows) -> Head:
    return Head(rows.hidden, rows.weight, None, rows.targets, scale=1.0, softcap=None)


def kept_share(head: Head, order: Tensor, width: int) -> float:
    """Share of the pairs of row and tile that stay at `TOLERANCE`."""
    ordered = in_order(head, order)
    p = torch.softmax((head.hidden @ head.weight.T).float(), 1)[:, order]
    mass = torch.stack([part.sum(1) for part in p.split(width, 1)], 1)
    plan = make_plan(
        head.rows,
        *head.weight.shape,
        head.hidden.dtype,
        backend="eager",
        device_type="cpu",
        workspace_bytes=0,
        tolerance=TOLERANCE,
        tile_width=width,
    )
    sparsity = Sparsity(order, mass, torch.zeros(1, dtype=torch.int64))
    stay = needed_rows(sparsity, ordered, plan).rows
    return sum(head.rows if rows is None else len(rows) for rows in stay) / mass.numel()


def likeliest_first(mean: Tensor) -> Tensor:
    return torch.argsort(mean, descending=True, stable=True)


def orders(rows: Rows) -> Iterator[str]:
    """Kept share by vocabulary order, for tiles of several widths."""
    head = head_of(rows)
    sample = sample_of(evenly_spaced(head))
    by_p = likeliest_first(torch.softmax(sample.logits.float(), 1).mean(0))
    by_root = likeliest_first(sample.mean_sqrt_prob)
    for width, name in WIDTHS.items():
        clustered = order_vocabulary(sample, width, TOLERANCE)
        kept = (kept_share(head, order, width) for order in (by_p, by_root, clustered))
        yield f"| {name} | {' | '.join(f'{share:.3f}' for share in kept)} |"


def sizes(rows: Rows, width: int = 1024) -> Iterator[str]:
    """Kept share by rows of a call; each call estimates an order of its own."""
    for size in (64, 128, 256, 512, 1024):
        shares = []
        for start in range(0, min(CALLS * size, len(rows.targets) - size + 1), size):
            part = slice(start, start + size)
            call = replace(rows, hidden=rows.hidden[part], targets=rows.targets[part])
            head = head_of(call)
            sample = sample_of(evenly_spaced(head))
            found = (
                likeliest_first(sample.mean_sqrt_prob),
                order_vocabulary(sample, width, TOLERANCE),
            )
            shares.append([kept_share(head, order, width) for order in found])
        by_root, clustered = torch.tensor(shares).mean(0).tolist()
        yield f"| {size:,} | {by_root:.3f} | {clustered:.3f} |"


def write(name: str, lines: Iterator[str]) -> None:
    """Replace what stands between the page's two marks of a table."""
    body = ""
    for line in lines:
        print(line, flush=True)
        body += f"{line}\n"
    pattern = rf"(<!-- {name}: begin -->\n(?:\|.*\n){{2}})(?:\|.*\n)*(<!-- {name}: end -->)"
    text, found = re.subn(pattern, rf"\g<1>{body}\g<2>", PAGE.read_text(encoding="utf-8"))
    assert found == 1, f"{PAGE} has no table {name!r}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    ROWS = probe(SHARED)
    write("orders", orders(ROWS.to(torch.bfloat16)))
    write("sizes", sizes(ROWS.to(torch.bfloat16)))
    write("errors", errors(ROWS))
