"""The library behaves as it did: what users see is as the committed texts say.

`make golden` writes them anew after a change that is meant; the diff says what it was.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.difference import as_lines, difference
from tests.golden.frozen import TEXTS, render

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", TEXTS)
def test_as_it_was(name: str) -> None:
    found = difference((HERE / f"{name}.txt").read_text(), render(name))
    if found:
        pytest.fail(f"{name}.txt\n{found}", pytrace=False)


def test_every_text_is_rendered() -> None:
    texts = {str(p.relative_to(HERE).with_suffix("")) for p in HERE.rglob("*.txt")}
    assert {name for name in texts if not name.startswith("files/")} == set(TEXTS)


def test_a_difference_is_told_under_its_heading() -> None:
    kept = "a, linear\n    dense\n        1\n        2\na, conv\n    dense\n        1\n"
    assert difference(kept, kept) == ""
    assert difference(kept, kept.replace("        2\n", "        3\n")).splitlines() == [
        "  a, linear",
        "      dense",
        "-         2",
        "+         3",
    ]
    assert difference(kept, f"{kept}b, conv\n") == "+ b, conv"
    assert difference(kept, "\n" * 300).endswith("lines more")
    assert as_lines({"a": {"b": 1, "c": [2, 3]}, "d": {}}) == "a\n b: 1\n c: [2, 3]\nd: {}\n"
