"""The README's table of numbers is what the committed rows say."""

from __future__ import annotations

import pytest

from rao_kernels.bench import readme, record


def test_readme_shows_the_newest_rows() -> None:
    if not record.folders("readme"):
        pytest.skip("there are no result rows yet")
    text = readme.README.read_text()
    assert readme.filled(text, readme.tables()) == text
