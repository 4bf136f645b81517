"""Records on disk are the records that were written; a store without its end is none."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

from rao_kernels.data import (
    DataReport,
    JoinedRows,
    Record,
    StoredRows,
    TokenizedRow,
    open_rows,
    store_rows,
)
from rao_kernels.data.store import BATCH_ROWS
from rao_kernels.errors import DataError

PARTS = {"files": "some"}


def ids(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def rows(count: int) -> list[TokenizedRow]:
    """Records of which every third has every field, and every third next to none."""
    found = []
    for i in range(count):
        row = TokenizedRow(ids(1, i), [ids(i, 2), ids(3)], [0.1 * i, -1.0], None, f"f.jsonl:{i}")
        if i % 3 == 0:
            row = replace(
                row,
                preferred=[True, False],
                masks=[torch.tensor([True, False]), torch.tensor([True])],
                token_inputs={
                    "old_token_logps": [torch.tensor([-0.1, -7.0]), torch.tensor([-1 / 3])],
                    "advantages": [torch.zeros(2), torch.ones(1)],
                },
                gold=ids(9, i),
                gold_mask=torch.tensor([True, False]),
                gold_reward=1 / 3,
                gold_marks=[False, True],
                ref_rewards=[0.1, 0.2, 0.3],
                reward_ensemble=[[0.1, 0.2], [0.3, 0.4]],
                kl_responses=[ids(5), ids(6, 7)],
            )
        elif i % 3 == 1:
            row = replace(row, rewards=None, responses=[ids()])
        found.append(row)
    return found


def plain(value: Any) -> Any:
    """A value with each tensor as its dtype and its numbers, so that values can be compared."""
    if isinstance(value, TokenizedRow):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def test_records_come_back_bit_by_bit(tmp_path: Path) -> None:
    given = rows(2 * BATCH_ROWS + 5)
    stored = store_rows(tmp_path / "data", PARTS, iter(given), DataReport())
    assert len(stored) == len(given)
    assert plain(list(stored)) == plain(given)
    order = torch.randperm(len(given)).tolist()
    assert [plain(stored[i]) for i in order] == [plain(given[i]) for i in order]
    assert plain(stored[-1]) == plain(given[-1])
    assert plain(stored[3:1:-1]) == plain(given[3:1:-1])
    with pytest.raises(IndexError):
        stored[len(given)]


def test_every_field_is_stored() -> None:
    """A new field of `TokenizedRow` that no column keeps would be lost."""
    import pyarrow

    from rao_kernels.data import store

    names = [field.name for field in dataclasses.fields(TokenizedRow)]
    assert sorted(name for name, _ in store._columns(pyarrow)) == sorted(names)


def test_tensors_may_be_written_to(tmp_path: Path) -> None:
    stored = store_rows(tmp_path, PARTS, rows(1), DataReport())
    stored[0].prompt.add_(1)
    assert stored[0].prompt.tolist() == [1, 0], "the file is as it was"


def test_a_copy_in_another_process_maps_the_file_itself(tmp_path: Path) -> None:
    stored = store_rows(tmp_path, PARTS, rows(3), DataReport())
    assert plain(stored[2]) == plain(rows(3)[2])
    copy = pickle.loads(pickle.dumps(stored))
    assert plain(list(copy)) == plain(rows(3))


def test_store_is_found_with_its_report_by_its_parts(tmp_path: Path) -> None:
    report = DataReport()

    def making() -> Iterator[TokenizedRow]:
        yield from rows(2)
        for where in ("f.jsonl:1", "f.jsonl:2"):
            report.count("native", Record("the same", ["twice"], [1.0], where))
        report.responses_dropped = 4
        report.skipped.append("f.jsonl:9: bad")

    assert open_rows(tmp_path, PARTS) is None
    store_rows(tmp_path, PARTS, making(), report)
    found = open_rows(tmp_path, PARTS)
    assert found is not None
    assert (len(found[0]), found[1].as_dict()) == (2, report.as_dict())
    assert (found[1].duplicates, found[1].repeated_prompts) == (1, 1)
    assert found[1].describe() == report.describe()
    assert open_rows(tmp_path, {"files": "others"}) is None


def test_a_store_that_was_not_finished_is_none(tmp_path: Path) -> None:
    def failing() -> Iterator[TokenizedRow]:
        yield from rows(BATCH_ROWS + 1)
        raise DataError("f.jsonl:200", "bad")

    with pytest.raises(DataError, match=r"f\.jsonl:200"):
        store_rows(tmp_path, PARTS, failing(), DataReport())
    assert list(tmp_path.iterdir()) == [], "nothing is left of it"
    stored = store_rows(tmp_path, PARTS, rows(2), DataReport())
    stored.path.with_suffix(".json").unlink()
    assert open_rows(tmp_path, PARTS) is None
    with pytest.raises(DataError, match="no manifest of a complete store"):
        StoredRows(stored.path)


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    stored = store_rows(tmp_path, PARTS, rows(1), DataReport())
    left = stored.path.with_name(f"{stored.path.name}.tmp")
    left.write_bytes(b"half of it")
    again = store_rows(tmp_path, PARTS, rows(2), DataReport())
    assert plain(list(again)) == plain(rows(2))
    assert not left.exists()


def test_two_writers_take_turns(tmp_path: Path) -> None:
    """The second one finds that its file was renamed by the first, and begins another."""
    begun, go_on = Event(), Event()

    def waiting() -> Iterator[TokenizedRow]:
        yield from rows(1)
        begun.set()
        assert go_on.wait(20)

    def second() -> int:
        assert begun.wait(20)
        asking.set()
        return len(store_rows(tmp_path, PARTS, rows(2), DataReport()))

    asking = Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store_rows, tmp_path, PARTS, waiting(), DataReport())
        other = pool.submit(second)
        assert asking.wait(20)
        assert not other.done()
        go_on.set()
        assert len(first.result()) == 1
        assert other.result() == 2
    found = open_rows(tmp_path, PARTS)
    assert found is not None and plain(list(found[0])) == plain(rows(2))
    assert len(list(tmp_path.iterdir())) == 2


def test_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(DataError, match=r"cannot be written .* Choose another output_dir"):
        store_rows(tmp_path / "data", PARTS, rows(1), DataReport())


def test_joined_rows() -> None:
    given = rows(5)
    joined = JoinedRows(given[:2], [], given[2:])
    assert len(joined) == 5
    assert [one.where for one in joined] == [one.where for one in given]
    assert [joined[i] is given[i] for i in range(-5, 5)] == [True] * 10
    assert joined[1:3] == given[1:3]
    with pytest.raises(IndexError):
        joined[5]
