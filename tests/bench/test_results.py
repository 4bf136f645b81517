"""What is made of results: comparison, README tables, pictures, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rao_kernels.bench import compare, readme, record, table
from rao_kernels.bench.trl_step import WITH, WITHOUT

from .tiny import result


def write(path: Path, results: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in results))
    return path


def measured(path: Path, ours: float, baseline: float = 1.0, **others: object) -> Path:
    """A file of a run: the baseline, ours and plain torch."""
    results = [
        result("bare GEMMs", baseline),
        result("rao_kernels", ours, **others),
        result("plain torch", 4.0),
    ]
    return write(path, results)


def test_a_slower_run_is_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = measured(tmp_path / "a.jsonl", 1.0)
    # Twice as slow a machine: multiples of the bare products are what counts.
    same = measured(tmp_path / "b.jsonl", 2.1, baseline=2.0)
    assert compare.compare(before, same, 1.1, False) == 0
    slower = measured(tmp_path / "c.jsonl", 1.2)
    assert compare.compare(before, slower, 1.1, False) == 1
    assert "WORSE time" in capsys.readouterr().out
    assert compare.compare(before, slower, 1.3, False) == 0


def test_more_memory_and_a_lost_status_are_regressions(tmp_path: Path) -> None:
    before = measured(tmp_path / "a.jsonl", 1.0)
    larger = measured(tmp_path / "b.jsonl", 1.0, peak_extra_bytes=9 << 20)
    wrong = measured(tmp_path / "c.jsonl", 1.0, status="wrong")
    assert compare.compare(before, larger, 1.1, False) == 1
    assert compare.compare(before, wrong, 1.1, False) == 1
    assert compare.compare(wrong, before, 1.1, False) == 0


def test_another_library_is_no_regression_of_ours(tmp_path: Path) -> None:
    before = measured(tmp_path / "a.jsonl", 1.0)
    after = write(tmp_path / "b.jsonl", [result("bare GEMMs", 1.0), result("plain torch", 9.0)])
    assert compare.compare(before, after, 1.1, True) == 0


def test_nothing_in_common(tmp_path: Path) -> None:
    before = write(tmp_path / "a.jsonl", [result("rao_kernels", 1.0)])
    after = write(tmp_path / "b.jsonl", [result("rao_kernels", 1.0, device="another")])
    assert compare.compare(before, after, 1.1, False) == 2


def test_the_later_of_two_results_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [result("rao_kernels", 1.0), result("rao_kernels", 3.0)])
    assert [one["median_s"] for one in record.read(path)] == [3.0]


def test_the_newest_file_is_the_one_written_last(tmp_path: Path) -> None:
    write(tmp_path / "2026-01-01-fff.jsonl", [result("a", 1.0, time="01:00:00")])
    late = write(tmp_path / "2026-01-01-aaa.jsonl", [result("a", 2.0, time="02:00:00")])
    assert record.newest(tmp_path) == late
    other = [result("a", 3.0, time="03:00:00", suite="rows")]
    last = write(tmp_path / "2026-01-01-bbb.jsonl", other)
    assert record.newest(tmp_path) == last and record.newest(tmp_path, "readme") == late
    suites = ("readme", "rows", "heads")
    assert record.newest_of_each(tmp_path, suites) == {"readme": late, "rows": last}
    last.unlink()
    assert record.read(tmp_path)[0]["median_s"] == 2.0


def test_readme_tables() -> None:
    place = readme.README.parent / "results.jsonl"
    results = [
        result("rao_kernels", 0.5),
        result("plain torch", 1.0),
        result("torch linear_cross_entropy", 0.0, direction="forward"),
        result("torch linear_cross_entropy", 0.0, status="too slow", call_s=31.0),
        result("Liger chunked losses", 0.0, status="unsupported"),
        result("TRL chunked log-probs", 0.0, status="wrong", reason="errors above 2.0"),
    ]
    for one in results[3:]:
        del one["median_s"]
    text = "\n\n".join(
        [
            readme._head(results, [place], readme.README),
            readme._full(results),
            *readme._rest(results),
        ]
    )
    assert "| plain torch | 1.000 | 1.00 | 1.0e-03 | 1.0e-03 | 1.0e-03 | 8 |" in text
    assert "| 0.500 | 0.50 |  | 2.00x | over 62x |" in text
    assert "TRL chunked log-probs: wrong (errors above 2.0)." in text
    assert "Liger" not in text


def test_each_machine_has_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    measured(tmp_path / "one" / "a.jsonl", 1.0)
    write(tmp_path / "other" / "plan" / "a.jsonl", [result("rao_kernels", 1.0)])
    write(tmp_path / "capped" / "a.jsonl", [result("rao_kernels", 1.0, suite="rows")])
    assert record.folders("readme") == [tmp_path / "one"]
    assert "###" not in readme.tables(readme.PAGE)
    path = tmp_path / "two" / "a.jsonl"
    results = [result("bare GEMMs", 1.0), result("rao_kernels", 0.25), result("plain torch", 4.0)]
    write(path, [{**one, "device": "Another CPU"} for one in results])
    text = readme.tables(readme.PAGE)
    assert text.count("###") == 2 and "### Another CPU" in text and "| 0.250 |" in text
    short = readme.tables(readme.README)
    assert "Another CPU" not in short and short.count("\n|---") == 1


def test_results_of_older_files_have_the_names_of_today(tmp_path: Path) -> None:
    """Old file against new one: the same cases."""
    names = {
        "probe (SmolLM2-135M, real text)": "real text, SmolLM2 135M",
        "sigmoid real text, SmolLM2 135M, N=8": "DPO, real text, SmolLM2 135M, N=8",
        "rao SmolLM2 135M, N=8": "RAO, SmolLM2 135M, N=8",
        "random N=8 D=16 V=96": "random N=8 D=16 V=96",
    }
    old = write(tmp_path / "a.jsonl", [result("rao_kernels", 1.0, case=name) for name in names])
    assert [one["case"] for one in record.read(old)] == [*names.values()]
    assert [one["case"] for one in record.read(old)] == [
        one["case"]
        for one in record.read(
            write(
                tmp_path / "b.jsonl",
                [result("rao_kernels", 1.0, case=one) for one in names.values()],
            )
        )
    ]


def test_results_under_a_limit_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their folder, the README's tables, files that hold both, and comparisons."""
    for name in record.LIMITS:
        monkeypatch.delenv(name, raising=False)
    device = torch.device("cpu")
    free = record.folder_of(device)
    assert record.surroundings(device)["limits"] == {}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    capped = record.folder_of(device)
    assert capped.name == f"{free.name}-onednn-avx2"
    limits = record.surroundings(device)["limits"]
    assert limits == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    both = [result(one, 1.0) for one in ("bare GEMMs", "rao_kernels", "plain torch")]
    slow = [{**one, "limits": limits, "median_s": 2.0} for one in both]
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    write(tmp_path / "b" / "a.jsonl", both)
    write(tmp_path / "a" / "a.jsonl", slow)
    assert record.folders("readme") == [tmp_path / "b", tmp_path / "a"]
    text = readme.tables(readme.PAGE)
    assert "### CPU, 2 threads (avx2)" in text
    assert "### CPU, 2 threads (avx2; ONEDNN_MAX_CPU_ISA=AVX2)" in text
    assert len(record.read(write(tmp_path / "c.jsonl", both + slow))) == 6
    assert [*compare.changes(both, slow, 1.1)] == []


def test_results_of_instruction_sets_lie_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_cpu", lambda: "Some(R) CPU @ 2.0GHz")
    for name in record.VENDOR_LIMITS:
        monkeypatch.delenv(name, raising=False)
    folders = set()
    for isa in ("avx2", "avx512_bf16"):
        monkeypatch.setattr(record, "_isa", lambda isa=isa: isa)
        folders.add(record.folder_of(torch.device("cpu")).name)
    assert folders == {"some-r-cpu-2-0ghz-avx2", "some-r-cpu-2-0ghz-avx512-bf16"}


def test_readme_tells_of_the_step_of_trl() -> None:
    steps = [result(WITHOUT, 4.0, suite="trl"), result(WITH, 1.0, suite="trl")]
    assert "4.00 s and 8 MiB with TRL 1.16.0 alone, 1.00 s" in readme._trl(steps)
    assert readme._trl(steps[:1]) == ""


def test_filled() -> None:
    text = f"before {readme.BEGIN}old{readme.END} after"
    assert readme.filled(text, "new\n") == f"before {readme.BEGIN}new\n{readme.END} after"


def test_table_of_a_case() -> None:
    from rich.console import Console

    console = Console(width=150, record=True)
    slow = result("slow", 0.0, status="too slow", call_s=31.0, reason="more than 20 s")
    del slow["median_s"]
    timed = [
        result("rao_kernels", 0.5, q10_s=0.4, q90_s=0.6),
        result("b", 1.0, q10_s=1.0, q90_s=1.0),
    ]
    table.show([slow, *timed], console)
    text = console.export_text()
    assert text.index("rao_kernels") < text.index("slow: too slow, 31.0 s, more than 20 s")
    assert "0.4000 .. 0.6000" in text and "2.00" in text


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from rao_kernels.bench.plot import draw

    results = [
        result(provider, seconds * size, suite=suite, N=8 * size, V=96 * size)
        for suite in ("readme", "rows", "vocabulary")
        for provider, seconds in (("rao_kernels", 1.0), ("plain torch", 2.0))
        for size in (1, 2)
    ]
    full, one, none = (tmp_path / name for name in ("full", "one", "none"))
    for folder, drawn in ((full, results), (one, results[:1]), (none, [])):
        assert draw(drawn, folder) == [folder / "readme.png", folder / "benchmarks.png"]
    sizes = [(folder / "benchmarks.png").stat().st_size for folder in (full, one, none)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] > 10_000


def test_pictures_show_what_is_right_and_was_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ours the default and the sparse backward, in their colours, beside the peers."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from matplotlib import colors

    from rao_kernels import _plot
    from rao_kernels.bench.plot import draw

    figures = []
    monkeypatch.setattr(_plot, "save", lambda figure, path, dpi=110: figures.append(figure))
    names = ("rao_kernels", "rao_kernels sparse 2^-9", "rao_kernels retained", "plain torch")
    results = [result(name, number + 0.5) for number, name in enumerate(names)]
    draw([*results, result("TRL chunked log-probs", 1.0, status="wrong")], tmp_path)
    speed, memory = figures[0].axes
    assert {text.get_text() for text in speed.texts} == {"rao_kernels", "sparse", "plain torch"}
    bars = {
        label.get_text(): bar.get_facecolor()
        for label, bar in zip(memory.get_yticklabels(), memory.patches, strict=True)
    }
    assert bars["rao_kernels"] == colors.to_rgba(_plot.OURS)
    assert bars["rao_kernels, sparse"] == colors.to_rgba(_plot.OURS_LIGHT)
    assert bars["plain torch"] == colors.to_rgba(_plot.MUTED[0])


def test_written_results_carry_the_surroundings(tmp_path: Path) -> None:
    import torch

    facts = record.surroundings(torch.device("cpu"))
    path = record.write([result("a", 1.0)], tmp_path, facts)
    found = json.loads(path.read_text())
    assert {"device", "isa", "torch", "packages", "commit", "time"} <= set(found)
    commit = facts["commit"].replace("+", "-changed")
    assert path.name == f"{facts['date']}-{commit}.jsonl"
