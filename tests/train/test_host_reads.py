"""A micro-batch is trained and evaluated without a host read by the trainer.

On a GPU each read would wait for the device. The op reads once per direction, and losses check
tensors of the CPU alone; those are not the trainer's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rao_kernels
from rao_kernels.sequence import SequenceBatch
from rao_kernels.train.metrics import count_units
from tests.train.test_trainer import trainer
from tests.train.tiny import tiny_rows

PACKAGE = Path(rao_kernels.__file__).parent
# What ends on the host: a value, or a shape that depends on values.
READS = {
    *("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select"),
    *("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::is_nonzero"),
}


class NoHostReads(TorchDispatchMode):
    """Raises at a read that one of `parts` of the package asks for."""

    def __init__(self, *parts: str) -> None:
        super().__init__()
        self.parts = parts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name().partition(".")[0]
        masked = name == "aten::index" and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        sizes = name == "aten::repeat_interleave" and not (kwargs or {}).get("output_size")
        if (name in READS or masked or sizes) and innermost_part(sys._getframe(1)) in self.parts:
            raise AssertionError(f"{name} reads a tensor on the host")
        return func(*args, **kwargs or {})


def innermost_part(frame: FrameType | None) -> str:
    """The part of the package that the innermost of its frames is in."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return path.relative_to(PACKAGE).with_suffix("").parts[0]
        frame = frame.f_back
    return ""


def guarded() -> NoHostReads:
    return NoHostReads("train", "sequence", "fused", "data", "segments")


def test_the_guard_sees_reads_of_the_package() -> None:
    ids = torch.ones(2, 4, dtype=torch.int64)
    with guarded(), pytest.raises(AssertionError, match="on the host"):
        SequenceBatch.from_padded(ids, ids)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "rao", "token_stats": True},
        {"loss": "rao", "prompt_term": "grad", "ref_per_token": True},
        {"loss": "dft"},
        {"loss": '{"rao": 1.0, "sft": 0.5}'},
    ],
)
def test_a_micro_batch_is_trained_and_evaluated(tmp_path: Path, options: dict[str, Any]) -> None:
    run = trainer(tmp_path, tiny_rows(4), **options)
    batch = run.data_collator([run.train_dataset[i] for i in range(4)])
    run.create_optimizer()
    with guarded():
        units = run._get_num_items_in_batch([batch], torch.device("cpu"))
        loss = run.training_step(run.model, batch, units)
        held_out, *_ = run.prediction_step(run.model, batch, prediction_loss_only=True)
    gradients = [p.grad for p in run.model.parameters() if isinstance(p.grad, Tensor)]
    assert gradients
    assert torch.isfinite(torch.stack([loss, held_out])).all()
    assert torch.equal(count_units(run.spec, batch), units)
