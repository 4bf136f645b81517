"""A cache is valid or it says what is wrong; nothing in between is ever loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rao_kernels.errors import DataError, InputError
from rao_kernels.refcache import (
    ReferenceCache,
    RowLayout,
    ShardValues,
    fill_cache,
    join_rows,
    write_atomic,
)
from rao_kernels.refcache.build import RowValues

PARTS = {"model": "m", "data": "d", "dtype": "float32"}
LAYOUT = [RowLayout(responses=1 + row % 3, tokens=4) for row in range(40)]


def values_of(rows: range) -> ShardValues:
    return join_rows(
        [
            RowValues(
                -1.0 * row, -0.5 * row - torch.arange(1 + row % 3), torch.full((4,), -0.1 * row)
            )
            for row in rows
        ]
    )


def filled(root: Path) -> ReferenceCache:
    cache = ReferenceCache(root, PARTS, LAYOUT)
    fill_cache(cache, values_of)
    return cache


def test_round_trip_in_order(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    assert [(rows.start, rows.stop) for rows in cache.shards()] == [(0, 16), (16, 32), (32, 40)]
    for row, values in enumerate(cache.load()):
        assert values.prompt == -1.0 * row
        assert torch.equal(values.responses, -0.5 * row - torch.arange(1 + row % 3))
        assert values.tokens is not None
        assert torch.equal(values.tokens, torch.full((4,), -0.1 * row))


def test_sums_only(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, PARTS, [RowLayout(2)])
    fill_cache(cache, lambda _: join_rows([RowValues(-3.0, torch.tensor([-1.0, -2.0]), None)]))
    (row,) = cache.load()
    assert (row.prompt, row.responses.tolist(), row.tokens) == (-3.0, [-1.0, -2.0], None)


def test_interrupted_run_goes_on(tmp_path: Path) -> None:
    """Only shards that are not there yet are scored."""
    cache = ReferenceCache(tmp_path, PARTS, LAYOUT)

    def stops_after_first(rows: range) -> ShardValues:
        if rows.start > 0:
            raise KeyboardInterrupt
        return values_of(rows)

    with pytest.raises(KeyboardInterrupt):
        fill_cache(cache, stops_after_first)
    scored: list[int] = []

    def score(rows: range) -> ShardValues:
        scored.append(rows.start)
        return values_of(rows)

    fill_cache(cache, score)
    assert scored == [16, 32]
    fill_cache(cache, score)
    assert scored == [16, 32]
    fill_cache(cache, score, policy="rebuild")
    assert scored == [16, 32, 0, 16, 32]


def test_ranks_share_the_shards(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, PARTS, LAYOUT)
    fill_cache(cache, values_of, rank=1, world_size=2)
    with pytest.raises(DataError, match="missing from the reference cache"):
        cache.load()
    fill_cache(cache, values_of, rank=0, world_size=2)
    assert len(cache.load()) == 40


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(bytes(content))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _foreign(path: Path) -> None:
    safetensors.torch.save_file({"prompt": torch.zeros(16)}, path)


def _swapped(path: Path) -> None:
    path.write_bytes(path.with_name("rows-00000016-00000032.safetensors").read_bytes())


@pytest.mark.parametrize("damage", [_cut, _flip, _empty, _foreign, _swapped])
def test_damaged_shard_is_named_and_scored_again(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    cache = filled(tmp_path)
    good = cache.load()
    damage(cache.path(cache.shards()[0]))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"rows-00000000-00000016.safetensors: damaged"):
        cache.load()
    with pytest.raises(DataError, match="damaged"):
        fill_cache(cache, values_of, policy="require")
    fill_cache(cache, values_of)
    assert "scored again" in caplog.text
    for row, other in zip(cache.load(), good, strict=True):
        assert torch.equal(row.responses, other.responses)


def test_not_finite_or_wrong_size_is_refused(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    rows = cache.shards()[2]
    bad = values_of(rows)
    bad.responses[3] = torch.nan
    cache.write(rows, bad)
    with pytest.raises(DataError, match="not finite"):
        cache.read(rows)
    cache.write(rows, values_of(range(10)))
    with pytest.raises(DataError, match="where its records need"):
        cache.read(rows)


def test_stale_cache_says_what_differs(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    other = ReferenceCache(tmp_path, PARTS | {"data": "e", "dtype": "bfloat16"}, LAYOUT)
    assert other.directory != cache.directory
    with pytest.raises(DataError, match=r"no reference cache.*another data, dtype"):
        fill_cache(other, values_of, policy="require")
    cache.directory.rename(other.directory)
    with pytest.raises(DataError, match="stale: it was made with another data, dtype"):
        fill_cache(other, values_of)
    (other.directory / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        fill_cache(other, values_of)


def test_atomic_write_leaves_the_old_file_on_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_manifest_names_the_parts(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    assert json.loads((cache.directory / "manifest.json").read_text()) == PARTS


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layout"):
        ReferenceCache(tmp_path, PARTS, [])
    with pytest.raises(InputError, match="policy"):
        fill_cache(ReferenceCache(tmp_path, PARTS, LAYOUT), values_of, policy="maybe")  # type: ignore[arg-type]
