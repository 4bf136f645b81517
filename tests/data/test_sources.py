"""Files, datasets and data frames: every source loads as it is, every place is exact."""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import datasets
import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch

from rao_kernels.data import MAX_REWARD, DataReport, load_records
from rao_kernels.errors import DataError, InputError
from tests import seeds

GOOD: dict[str, Any] = {"prompt": "p", "responses": ["a", "b"], "rewards": [1.0, 0.5]}
USER = {"role": "user", "content": "q"}
CHAT: dict[str, Any] = {
    "prompt": [{"role": "system", "content": "s"}],
    "chosen": [USER, {"role": "assistant", "content": "x"}],
    "rejected": [USER, {"role": "assistant", "content": "y"}],
    "score_chosen": 2.0,
    "score_rejected": 0.25,
}
LINE = json.dumps(GOOD).encode()


@pytest.mark.parametrize(
    "convert",
    [
        lambda rows: datasets.Dataset.from_list(rows),
        lambda rows: datasets.Dataset.from_list(rows).with_format("numpy"),
        lambda rows: datasets.Dataset.from_list(rows).with_format("torch"),
        lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset(),
        lambda rows: datasets.Dataset.from_list(rows).to_pandas(),
        pandas.DataFrame,
        lambda rows: (row for row in rows),
        tuple,
    ],
    ids="dataset numpy torch iterable arrow_frame frame generator tuple".split(),
)
def test_sources_in_python(convert: Callable[[list[dict[str, Any]]], Any]) -> None:
    native = load_records(convert([GOOD, GOOD | {"prompt": "é"}]))
    assert [(r.prompt, r.responses, r.rewards) for r in native] == [
        ("p", ["a", "b"], [1.0, 0.5]),
        ("é", ["a", "b"], [1.0, 0.5]),
    ]
    paired = load_records(convert([CHAT, CHAT]))
    assert [r.where for r in paired] == ["row 0", "row 1"]
    assert paired[0].prompt == [*CHAT["prompt"], USER]
    assert paired[0].responses == ["x", "y"]
    assert paired[0].rewards == [2.0, 0.25]
    values = [*native[0].rewards, *native[0].responses, native[0].prompt, *paired[0].rewards]
    assert {type(value) for value in values} <= {float, str}


def test_a_frame_marks_what_is_missing() -> None:
    """None becomes NaN in a frame; a score that is NaN is not taken for a missing one."""
    chat = {key: CHAT[key] for key in ("chosen", "rejected")}
    frame = pandas.DataFrame([{"prompt": "q", "chosen": "x", "rejected": "y"}, chat])
    assert [r.prompt for r in load_records(frame)] == ["q", [USER]]
    frame = pandas.DataFrame([CHAT, CHAT | {"score_chosen": None, "score_rejected": None}])
    with pytest.raises(DataError, match="row 1: reward 0 is nan"):
        load_records(frame)
    with pytest.raises(InputError, match="columns of different names"):
        load_records(pandas.DataFrame([["a", "b"]], columns=["prompt", "prompt"]))


@pytest.mark.parametrize(
    ("source", "got"),
    [
        (
            datasets.DatasetDict(a=datasets.Dataset.from_list([GOOD])),
            r"a DatasetDict with .* \['a'\]",
        ),
        (GOOD, "a dict with the keys .'prompt'"),
        (None, "None"),
        (3, "3"),
    ],
)
def test_what_holds_no_rows(source: Any, got: str) -> None:
    with pytest.raises(InputError, match=f"`source`: expected .* records, got {got}"):
        load_records(source)


def test_limit_is_a_number_of_rows() -> None:
    for limit in (0, -1):
        with pytest.raises(InputError, match="`limit`"):
            load_records([GOOD], limit=limit)


def test_only_as_many_rows_are_read_as_asked_for() -> None:
    read = []

    def rows() -> Any:
        for number in range(5):
            read.append(number)
            yield GOOD

    assert len(load_records(rows(), limit=2)) == 2
    assert read == [0, 1]


@pytest.mark.parametrize(
    ("reward", "value"),
    [
        (numpy.float32(0.1), float(numpy.float32(0.1))),
        (numpy.float16(2), 2.0),
        (numpy.int64(-3), -3.0),
        (numpy.longdouble(3), 3.0),
        (numpy.array(1.5), 1.5),
        (torch.tensor(1.5), 1.5),
        (torch.tensor(2), 2.0),
        (Decimal("1.25"), 1.25),
        (Fraction(1, 4), 0.25),
        (MAX_REWARD, float(MAX_REWARD)),
        (-MAX_REWARD, -float(MAX_REWARD)),
    ],
)
def test_every_real_number_is_a_reward(reward: Any, value: float) -> None:
    (record,) = load_records([GOOD | {"rewards": [reward, 0]}])
    assert record.rewards == [value, 0.0]
    (record,) = load_records([GOOD | {"rewards": numpy.array([reward, 0], dtype=object)}])
    assert record.rewards == [value, 0.0]


@pytest.mark.parametrize(
    ("reward", "problem"),
    [
        (True, "not a finite number"),
        (numpy.True_, "not a finite number"),
        (torch.tensor(True), "not a finite number"),
        (torch.tensor([1.0]), "not a finite number"),
        (float("nan"), "not a finite number"),
        (numpy.float32("inf"), "not a finite number"),
        (Decimal("NaN"), "not a finite number"),
        (Decimal("sNaN"), "not a finite number"),
        (Decimal("-Infinity"), "not a finite number"),
        (1j, "not a finite number"),
        ("1", "not a finite number"),
        (None, "not a finite number"),
        (MAX_REWARD + 1, "Rescale"),
        (-1e300, "Rescale"),
        (10**400, "Rescale"),
        (-(10**5000), "Rescale"),
        (Fraction(10**400), "Rescale"),
        (Decimal("1e400"), "not a finite number"),
    ],
    # Integers of 5,000 digits have no text.
    ids=lambda value: type(value).__name__,
)
def test_every_other_reward_is_named(reward: Any, problem: str) -> None:
    with pytest.raises(DataError, match=f"row 1: reward 1 is .*{problem}"):
        load_records([GOOD, GOOD | {"rewards": [0, reward]}])


def test_largest_reward_trains_in_single_precision() -> None:
    """The squared gradient of a squared loss on the largest reward, summed over a large model."""
    reward = torch.tensor(float(MAX_REWARD), requires_grad=True)
    hidden, tokens, parameters = 100.0, 10_000, 1e10
    ((reward - 0.0) ** 2).backward()
    squares = (reward.grad * hidden * tokens) ** 2 * parameters
    assert squares.dtype == torch.float32
    assert torch.isfinite(squares)
    assert torch.tensor(float(MAX_REWARD)) != torch.tensor(MAX_REWARD - 0.1)


def test_place_is_the_path_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files of one name in two folders are told apart."""
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "rows.jsonl").write_bytes(LINE + b"\n" + LINE + b"\n{}\n")
    given = ["./a/rows.jsonl", Path("b/rows.jsonl"), tmp_path / "a" / "rows.jsonl"]
    report = DataReport()
    records = load_records(given, bad_rows="skip", report=report)
    names = ["./a/rows.jsonl", "b/rows.jsonl", f"{tmp_path}/a/rows.jsonl"]
    assert [r.where for r in records] == [f"{name}:{line}" for name in names for line in (1, 2)]
    assert [text.split(": ")[0] for text in report.skipped] == [f"{name}:3" for name in names]


def test_a_wrong_byte_is_found_in_its_line(tmp_path: Path) -> None:
    latin = json.dumps(GOOD | {"prompt": "café"}, ensure_ascii=False).encode("latin-1")
    text = b"\n".join([LINE, b"", latin, LINE])
    for name, data in {"x.jsonl": text, "x.jsonl.gz": gzip.compress(text)}.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"{path}:3: not UTF-8"):
            load_records(path)
        report = DataReport()
        records = load_records(path, bad_rows="skip", report=report)
        assert [r.where for r in records] == [f"{path}:1", f"{path}:4"]
        assert len(report.skipped) == 1


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + LINE + b"\r\n\r\n" + LINE + b"\r\n")
    assert [r.where for r in load_records(path)] == [f"{path}:1", f"{path}:3"]


def test_files_are_read_line_by_line(tmp_path: Path) -> None:
    """Rows behind the limit are not read, even if they are broken."""
    path = tmp_path / "x.jsonl.gz"
    random = Random(seeds.shifted())
    rows = [GOOD | {"prompt": random.randbytes(99).hex()} for _ in range(3000)]
    data = gzip.compress("\n".join(map(json.dumps, rows)).encode())
    path.write_bytes(data[: len(data) // 2])
    assert len(load_records(path, limit=5)) == 5
    with pytest.raises(DataError, match=rf"{path}:\d\d\d+: cannot be read"):
        load_records(path, bad_rows="skip")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    damaged = bytearray(gzip.compress(LINE * 99))
    damaged[30] ^= 255
    files: dict[str, tuple[bytes, str]] = {
        "empty.jsonl": (b"", "is empty"),
        "blank.jsonl": (b"\n \n", "is empty"),
        "no.jsonl.gz": (b"no gzip", ":1: cannot be read"),
        "damaged.jsonl.gz": (bytes(damaged), ": cannot be read"),
        "list.json": (b"[]", "not a file of a supported format. .*one line of a .jsonl file"),
        "table.csv": (b"a,b", "not a file of a supported format"),
        "no.parquet": (b"no parquet", "not a Parquet file"),
    }
    (tmp_path / "good.jsonl").write_bytes(LINE)
    for name, (data, problem) in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        for source in (path, [tmp_path / "good.jsonl", str(path)]):
            for policy in ("raise", "skip"):
                with pytest.raises(DataError, match=f"^{path}.*{problem}"):
                    load_records(source, bad_rows=policy)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"{tmp_path}: is a directory"):
        load_records(tmp_path)
    with pytest.raises(DataError, match="none.jsonl: no such file"):
        load_records([tmp_path / "none.jsonl"])


def test_all_rows_bad_names_the_first(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"{}\n[]\n")
    with pytest.raises(
        DataError, match=f"{path}: holds no usable record: all 2 are bad.*{path}:1: "
    ):
        load_records(path, bad_rows="skip")


def write_parquet(path: Path, table: pyarrow.Table, **options: Any) -> Path:
    pyarrow.parquet.write_table(table, path, **options)
    return path


def test_a_damaged_page_is_named_by_its_rows(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([GOOD | {"prompt": f"prompt {i}" * 9} for i in range(300)])
    path = write_parquet(tmp_path / "x.parquet", table, row_group_size=100)
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    for position in range(40, 140):
        data[column.dictionary_page_offset + position] ^= 255
    path.write_bytes(data)
    for policy in ("raise", "skip"):
        with pytest.raises(DataError, match=f"{path}:rows 100 to 199: cannot be decoded"):
            load_records(path, bad_rows=policy)  # type: ignore[arg-type]
    assert len(load_records(path, limit=100)) == 100


def test_a_text_of_parquet_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    columns = {"prompt": [b"p", b"\xff", b"q"], "chosen": [b"a"] * 3, "rejected": [b"b"] * 3}
    arrays = {key: pyarrow.array(value).view(pyarrow.string()) for key, value in columns.items()}
    path = write_parquet(tmp_path / "x.parquet", pyarrow.table(arrays))
    with pytest.raises(DataError, match=f"{path}:row 1: cannot be decoded"):
        load_records(path)
    report = DataReport()
    records = load_records(path, bad_rows="skip", report=report)
    assert [(r.prompt, r.where) for r in records] == [
        ("p", f"{path}:row 0"),
        ("q", f"{path}:row 2"),
    ]
    assert len(report.skipped) == 1


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    arrays = [pyarrow.array([text]) for text in "pqab"]
    table = pyarrow.Table.from_arrays(arrays, ["prompt", "prompt", "chosen", "rejected"])
    path = write_parquet(tmp_path / "x.parquet", table)
    with pytest.raises(DataError, match=f"{path}: two columns of one name"):
        load_records(path)
