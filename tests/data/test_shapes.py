"""Records of every public shape load as they are; what is ambiguous or would be lost is named."""

from __future__ import annotations

import pytest

from rao_kernels.data import (
    DataReport,
    ShapeOptions,
    load_records,
    parse_record,
)
from rao_kernels.data.shapes import SHAPES
from tests.data.shape_rows import CASES, Case

IDS = [f"{number}_{case.shape}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_each_shape_loads_as_it_is(case: Case) -> None:
    report = DataReport()
    (record,) = load_records([case.row], report=report)
    assert record.prompt == case.prompt
    assert record.responses == case.responses
    assert record.rewards == case.rewards
    assert record.preferred == case.preferred
    assert dict(report.shapes) == {case.shape: 1}
    assert f"shapes: {case.shape} 1" in report.describe()
    assert parse_record("row 0", case.row) == record
    assert parse_record("row 0", case.row, ShapeOptions(shape=case.shape)) == record


def test_each_shape_has_a_case() -> None:
    assert {case.shape for case in CASES} == {shape.name for shape in SHAPES} - {"prompt"}
