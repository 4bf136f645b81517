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


def test_the_claims_of_the_first_lines_hold_in_the_table() -> None:
    text = readme.README.read_text()
    assert "about half the time of plain torch and under a fifth of its extra memory" in text
    assert "over a thousand times as exact" in text

    def figures(provider: str) -> list[float]:
        """Seconds, log-prob error and MiB, off its line of the table."""
        (cells,) = [line.split("|") for line in text.splitlines() if f"| {provider} |" in line]
        return [float(cells[column]) for column in (2, 4, 7)]

    ours, plain = figures("**rao_kernels**"), figures("plain torch")
    shares = [one / other for one, other in zip(ours, plain, strict=True)]
    assert shares[0] < 0.6 and shares[1] < 1 / 1000 and shares[2] < 1 / 5, shares
