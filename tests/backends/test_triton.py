"""The Triton backend's reasons for refusing a problem, and its scratch memory."""

from __future__ import annotations

import pytest
import torch

from rao_kernels import backends
from rao_kernels.backends import GROUP, Head, triton
from rao_kernels.backends.triton import tuning

from .tile_walk import assert_as_good_as_eager, make_case

CUDA, BF16 = torch.device("cuda"), torch.bfloat16


def target(name: str, capability: tuple[int, int], *, is_amd: bool = False) -> tuning.Target:
    return tuning.Target(name, capability, processors=80, shared_bytes=65536, is_amd=is_amd)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (target("T4", (7, 5)), "it needs compute capability 8.0, T4 has 7.5"),
        (target("A100", (8, 0)), None),
        (target("H100", (9, 0)), None),
        (target("MI250X", (9, 0), is_amd=True), None),
        (target("an AMD part that says 7.0", (7, 0), is_amd=True), None),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_needs_sm_80(
    given: tuning.Target, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "target_of", lambda device: given)
    assert triton.supports(CUDA, BF16) == reason


def test_float64_is_refused() -> None:
    assert "not torch.float64" in str(triton.supports(CUDA, torch.float64))


def test_other_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_interpreting", lambda: False)
    assert "TRITON_INTERPRET=1" in str(triton.supports(torch.device("cpu"), BF16))
    assert "not on meta" in str(triton.supports(torch.device("meta"), BF16))


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_installed", lambda: False)
    assert "pip install triton" in str(triton.supports(CUDA, BF16))


def test_first_on_cuda_and_never_chosen_on_a_cpu() -> None:
    assert backends.ORDER["cuda"][0] == "triton"
    assert "triton" not in backends.ORDER["cpu"]


@pytest.mark.parametrize("width", [200, 5000, 8192])
def test_scratch_of_each_form(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/roofline.md: 4 N W of products, or 20 N W / 256 of statistics; s N W of dz."""
    hidden = torch.empty(12, 64, dtype=BF16)
    head = Head(hidden, hidden, None, torch.zeros(12, dtype=torch.int64), 1.0, None)
    padded = -(-width // 256) * 256
    for fused, forward in ((False, 4 * 12 * padded), (True, 20 * 12 * padded // 256)):
        monkeypatch.setattr(tuning, "is_fused", lambda *_, fused=fused: fused)
        assert sum(part.nbytes for part in triton.scratch(head, width, backward=False)) == forward
        assert sum(part.nbytes for part in triton.scratch(head, width, backward=True)) == (
            2 * 12 * padded
        )


@pytest.mark.parametrize("retain", [False, True], ids=["recomputed", "retained"])
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_a_tile_wider_than_the_registers_of_a_program(
    fused: bool, retain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three chunks of a row, the last one in part; a few rows of a large head are one tile."""
    monkeypatch.setattr(tuning, "is_fused", lambda *_: fused)
    width = 2 * tuning.MOST_GROUPS * GROUP + 1300
    assert tuning.score_rows_launch(torch.device("cpu"), 3, width).chunks == 3
    assert_as_good_as_eager(
        lambda: make_case(3, 16, width, width, torch.float32, bias=True, softcap=8.0),
        retain=retain,
        backend=triton,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here")
def test_the_interpreter_is_available() -> None:
    """Without the interpreter, the contract's tests of this backend would be skipped unnoticed."""
    assert triton.supports(torch.device("cpu"), BF16) is None
