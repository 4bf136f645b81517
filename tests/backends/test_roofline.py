"""The roofline model, and that its page and the table of forms are generated from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import generate_roofline
import roofline
from rao_kernels.backends.triton import tuning
from roofline import Device, Shape

DOCS = Path(__file__).parents[2] / "docs"
TARGET = tuning.Target("NVIDIA H100 80GB HBM3", (9, 0), 132, 232448, False)


def test_page_is_generated_from_the_model() -> None:
    """Run docs/generate_roofline.py where this fails."""
    text = (DOCS / "roofline.md").read_text()
    assert generate_roofline.page(text) == text


def test_forms_without_a_measurement_are_the_models() -> None:
    """Run docs/generate_roofline.py where this fails."""
    assert (
        generate_roofline.forms_text(generate_roofline.forms())
        == generate_roofline.FORMS.read_text()
    )


@pytest.mark.parametrize("what", ["score", "grad"])
@pytest.mark.parametrize("device", roofline.modelled(), ids=lambda device: device.name)
def test_forms_change_places_at_the_largest_size(device: Device, what: tuning.Pass) -> None:
    size = roofline.largest_fused_size(device, what)

    def saved(size: int) -> float:
        fused = roofline.fused_seconds(device, what, size)
        return roofline.unfused_seconds(device, what, size) - fused

    assert saved(size) >= 0.0 > saved(size + 1)


def test_a_product_at_the_data_sheets_peak() -> None:
    """Llama-3-8B on an H100: 2 x 8192 x 4096 x 128256 operations at 989 TFLOP/s are 8.7 ms."""
    (device,) = (one for one in roofline.devices() if one.name == "H100")
    seconds = 8192 * 128256 * roofline.product_seconds(device, 4096) * device.vendor_share
    assert seconds == pytest.approx(8.70e-3, rel=1e-3)


HEADLINE = Shape(8192, 4096, 131_072)
H200, A100 = (next(one for one in roofline.devices() if one.name == n) for n in ("H200", "A100"))


def test_gemms_of_a_pass() -> None:
    """One, three and four of them, at the vendor's share of the peak; few bytes besides."""
    one = HEADLINE.vocabulary * HEADLINE.rows * roofline.product_seconds(H200, HEADLINE.size)
    plan = HEADLINE.plan()
    assert roofline.forward(H200, HEADLINE, plan).gemm == pytest.approx(one)
    for workspace, products in ((1 << 62, 3), (0, 4)):
        time = roofline.dense(H200, HEADLINE, workspace)
        assert time.gemm == pytest.approx(products * one)
        assert time.bound == "GEMM" and time.gemm < time.seconds < 1.2 * time.gemm


def test_the_default_is_what_the_plan_retains() -> None:
    """Between nothing and everything."""
    for shape in (HEADLINE, replace(HEADLINE, vocabulary=16_384)):
        share = roofline.retained_share(shape.plan())
        most, least = (roofline.dense(H200, shape, workspace).gemm for workspace in (0, 1 << 62))
        expected = share * least + (1 - share) * most
        assert roofline.dense(H200, shape).gemm == pytest.approx(expected)


def test_bytes_of_a_dense_pass() -> None:
    """Ten bytes an element, retained or not: read 4 and write 2 in forward, or later."""
    nbytes = 10 * HEADLINE.rows * HEADLINE.vocabulary
    rate = H200.bytes_per_second * roofline.MEMORY_SHARE
    for workspace in (0, 1 << 62):
        memory = roofline.dense(H200, HEADLINE, workspace).memory
        assert memory == pytest.approx(nbytes / rate)


def test_what_bounds_a_pass() -> None:
    few = replace(HEADLINE, rows=64)
    assert roofline.forward(H200, few, few.plan()).bound in ("HBM", "launches")
    assert roofline.Time(1.0, 0.5, 2.0).bound == "launches"
    assert roofline.Time(1.0, 1.5, 2.0).bound == "HBM"
    assert roofline.Time(1.0, 1.5, 2.0).seconds == 2.5
    weight = 2 * few.vocabulary * few.size / H200.bytes_per_second
    assert roofline.forward(H200, few, few.plan()).seconds > weight


@pytest.mark.parametrize("device", roofline.devices(), ids=lambda device: device.name)
def test_a_sparse_pass_is_between_forward_and_dense(device: Device) -> None:
    sparse, screened = (make(device, HEADLINE) for make in (roofline.sparse, roofline.screened))
    forward = roofline.forward(device, HEADLINE, HEADLINE.plan())
    assert forward.seconds < sparse.seconds < roofline.dense(device, HEADLINE, 0).seconds
    assert screened.gemm < sparse.gemm


def test_choice_of_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "target_of", lambda device: TARGET)
    (row,) = (r for r in tuning.forms() if (r["device"], r["dtype"]) == ("H100", "bfloat16"))
    device, limit = torch.device("cuda"), row["score"] // 16 * 16
    assert tuning.is_fused("score", device, torch.bfloat16, limit)
    assert not tuning.is_fused("score", device, torch.bfloat16, limit + 16)
    assert not tuning.is_fused("score", device, torch.bfloat16, 1032)  # rows off 16 elements
    assert not tuning.is_fused("score", device, torch.float32, 64)


def test_a_pipeline_fits_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A100, H100, and devices of sm_86 and sm_120 with 100 KiB: what fits, at most 4 stages."""
    from rao_kernels.backends import Head

    hidden = torch.empty(4, 64, dtype=torch.bfloat16)
    head = Head(hidden, hidden, None, torch.zeros(4, dtype=torch.int64), 1.0, None)
    for capability, shared, stages in (
        ((8, 0), 166912, 4),
        ((9, 0), 232448, 4),
        ((8, 6), 101376, 3),
        ((12, 0), 101376, 2),
    ):
        target = tuning.Target("", capability, 80, shared, False)
        monkeypatch.setattr(tuning, "target_of", lambda device, target=target: target)
        launch = tuning.grad_launch(head)
        assert launch.stages == stages
        buffers = stages - (capability < (9, 0))
        assert buffers * 2 * (launch.block_rows + 256) * launch.block_size <= shared


def test_only_half_precision_is_fused() -> None:
    assert {row["dtype"] for row in tuning.forms()} == {"bfloat16", "float16"}
