"""The tables of numbers, in README and docs/benchmarks.md, are what the committed results say."""

from __future__ import annotations

from pathlib import Path

import pytest

from rao_kernels.bench import readme, record


@pytest.mark.parametrize("page", [readme.README, readme.PAGE], ids=lambda page: page.name)
def test_pages_show_the_newest_results(page: Path) -> None:
    if not record.folders("readme"):
        pytest.skip("there are no results yet")
    text = page.read_text()
    assert readme.filled(text, readme.tables(page)) == text


def test_readme_has_one_table_and_the_page_the_others() -> None:
    short, full = readme.tables(readme.README), readme.tables(readme.PAGE)
    assert short.count("\n|---") == 1
    assert full.count("\n|---") == 2 * len(record.folders("readme"))
    assert "](../bench/results/" in full and "](bench/results/" in short
