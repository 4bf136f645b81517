"""Every supported row loads, every bad one is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rao_kernels.data import DataReport, load_records, split_records
from rao_kernels.errors import DataError, InputError

GOOD: dict[str, Any] = {"prompt": "p", "responses": ["a", "b"], "rewards": [1, 0.5]}
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "yes"}


def test_native_row_in_every_container(tmp_path: Path) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    text = json.dumps(GOOD) + "\n\n" + json.dumps(GOOD) + "\n"
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD, GOOD]), tmp_path / "c.parquet")
    sources = [
        tmp_path / "a.jsonl",
        str(tmp_path / "b.jsonl.gz"),
        tmp_path / "c.parquet",
        [GOOD, GOOD],
        datasets.Dataset.from_list([GOOD, GOOD]),
    ]
    for source in sources:
        records = load_records(source)
        assert [record.responses for record in records] == [["a", "b"]] * 2
        assert [record.rewards for record in records] == [[1.0, 0.5]] * 2
    assert len(load_records(sources[:3])) == 6
    assert [r.where for r in load_records(sources[0])] == [
        f"{tmp_path}/a.jsonl:1",
        f"{tmp_path}/a.jsonl:3",
    ]
    assert len(load_records(sources[0], limit=1)) == 1


@pytest.mark.parametrize(
    ("row", "rewards"),
    [
        ({"prompt": "q", "chosen": "x", "rejected": "y"}, None),
        (
            {
                "prompt": [USER],
                "chosen": [{"role": "assistant", "content": "x"}],
                "rejected": [{"role": "assistant", "content": "y"}],
                "score_chosen": 7.0,
                "score_rejected": 3,
            },
            [7.0, 3.0],
        ),
        (
            {
                "chosen": [USER, {"role": "assistant", "content": "x"}],
                "rejected": [USER, {"role": "assistant", "content": "y"}],
            },
            None,
        ),
    ],
    ids=["texts", "chat with scores", "implicit prompt"],
)
def test_paired_rows(row: dict[str, Any], rewards: list[float] | None) -> None:
    (record,) = load_records([row])
    assert record.responses == ["x", "y"]
    assert record.rewards == rewards
    assert record.preferred == [True, False]
    assert record.prompt in ("q", [USER])


BAD = {
    "not valid JSON": '{"prompt": ',
    "a record must be an object": "[1]",
    "no shape of records has its columns": {"question_text": "p", "answer": "a"},
    "has a prompt and no responses": {"prompt": "p", "answer": "a"},
    "`prompt` is missing": {"responses": ["a"], "rewards": [1]},
    "`prompt` is empty": GOOD | {"prompt": ""},
    "ends with an assistant turn": GOOD | {"prompt": [USER, ANSWER]},
    r"prompt\[0\] is not a message": GOOD | {"prompt": [{"role": "user"}]},
    "`responses` is empty": GOOD | {"responses": [], "rewards": []},
    "`responses` must be a list": GOOD | {"responses": "a"},
    "must be a text or one assistant": GOOD | {"responses": ["a", 3]},
    "2 responses but 1 rewards": GOOD | {"rewards": [1]},
    "reward 1 is nan": GOOD | {"rewards": [1, float("nan")]},
    "reward 0 is inf": GOOD | {"rewards": [float("inf"), 1]},
    "reward 0 is None": GOOD | {"rewards": [None, 1]},
    "reward 1 is '2'": GOOD | {"rewards": [1, "2"]},
    "reward 1 is True": GOOD | {"rewards": [1, True]},
    "answer different prompts": {
        "chosen": [USER, ANSWER],
        "rejected": [{"role": "user", "content": "other"}, ANSWER],
    },
    "reward 1 is None": {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1.0},
}


@pytest.mark.parametrize("problem", BAD)
def test_bad_row_is_named_or_skipped_and_counted(tmp_path: Path, problem: str) -> None:
    bad = BAD[problem]
    line = bad if isinstance(bad, str) else json.dumps(bad)
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n{json.dumps(GOOD)}\n")
    with pytest.raises(DataError, match=rf"data\.jsonl:2: .*{problem}"):
        load_records(path)
    report = DataReport()
    assert len(load_records(path, bad_rows="skip", report=report)) == 2
    assert len(report.skipped) == 1
    assert "data.jsonl:2" in report.skipped[0]
    assert "1 bad records skipped" in report.describe()


def test_bad_files(tmp_path: Path) -> None:
    empty, other, cut = tmp_path / "e.jsonl", tmp_path / "x.csv", tmp_path / "c.jsonl.gz"
    empty.write_text("\n")
    other.write_text("a,b\n")
    cut.write_bytes(gzip.compress(json.dumps(GOOD).encode() * 50)[:40])
    for path, problem in {
        empty: "no usable record",
        other: "not a file of a supported format",
        cut: "cannot be read",
        tmp_path / "absent.jsonl": "no such file",
    }.items():
        with pytest.raises(DataError, match=problem):
            load_records(path)
    (tmp_path / "p.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="not a Parquet file"):
        load_records(tmp_path / "p.parquet")
    with pytest.raises(InputError, match="bad_rows"):
        load_records([GOOD], bad_rows="ignore")  # type: ignore[arg-type]


def test_split_keeps_a_prompt_on_one_side() -> None:
    rows = [GOOD | {"prompt": f"prompt {i % 100}"} for i in range(200)]
    records = load_records(rows)
    train, held_out = split_records(records, 0.2)
    assert len(train) + len(held_out) == 200
    assert not {str(r.prompt) for r in train} & {str(r.prompt) for r in held_out}
    assert 20 <= len(held_out) <= 60
    assert split_records(records, 0.0)[1] == []
    with pytest.raises(InputError, match="eval_fraction"):
        split_records(records, 1.0)
