"""The library behaves as it did: what users see is as the committed texts say.

`make golden` writes them anew after a change that is meant; the diff says what it was.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from tests.golden.frozen import TEXTS

HERE = Path(__file__).parent
MOST_LINES = 200


@pytest.mark.parametrize("name", TEXTS)
def test_as_it_was(name: str) -> None:
    kept = (HERE / f"{name}.txt").read_text()
    now = TEXTS[name]()
    if now != kept:
        lines = difflib.unified_diff(
            kept.splitlines(), now.splitlines(), f"{name}.txt", "now", lineterm="", n=2
        )
        shown = list(lines)
        more = f"\n... {len(shown) - MOST_LINES} more" if len(shown) > MOST_LINES else ""
        pytest.fail("\n".join(shown[:MOST_LINES]) + more, pytrace=False)
