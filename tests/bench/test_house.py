"""The counts of `bench/house` follow the rules that they state."""

from __future__ import annotations

import ast

import pytest

from bench.house import counts
from bench.house.counts import _descends, _halves
from bench.house.imports import _components
from bench.house.rendering import table
from bench.house.trees import Count, code_lines

DESCENT = """
for sweep in range(n_iter_max):
    state = step(state)
    errors.append(error_of(state))
    if errors[-1] < tol:
        break
"""
SEARCH = """
while above - below > 1:
    middle = (above + below) // 2
    if fit(middle).error <= error:
        above = middle
    else:
        below = middle
"""


def loop(text: str) -> ast.For | ast.While:
    found = ast.parse(text).body[0]
    assert isinstance(found, (ast.For, ast.While))
    return found


def test_a_descent_writes_its_errors_down_and_can_leave() -> None:
    assert _descends(loop(DESCENT))
    assert not _descends(loop(DESCENT.replace("break", "pass")))
    assert not _descends(loop(DESCENT.replace("errors.append", "parts.append")))
    assert not _descends(loop(SEARCH))


def test_a_search_halves_and_compares_with_the_error() -> None:
    assert _halves(loop(SEARCH))
    assert not _halves(loop(SEARCH.replace("<= error", "<= budget")))
    assert not _halves(loop(SEARCH.replace("// 2", "- 1")))
    assert not _halves(loop(DESCENT))


def test_lines_of_code_are_no_docstrings_comments_or_blanks() -> None:
    text = (
        '"""What.\n\nMore.\n"""\nA = 1\n\n\ndef f(x):\n    """Twice."""\n    # why\n    return 2\n'
    )
    assert code_lines(ast.parse(text)) == 3


def test_modules_that_reach_each_other_are_a_circle() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"f"}, "f": {"e"}, "g": set()}
    assert [sorted(c) for c in _components(edges) if len(c) > 1] == [["a", "b", "c"], ["e", "f"]]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("isinstance(x, LowRank)", 1),
        ("isinstance(x, (int, CPFactors))", 1),
        ("issubclass(kind, Grouped)", 1),
        ("type(x) is TTMatrix", 1),
        ("self._format in (LowRank, CPFactors)", 1),
        ("isinstance(x, Factors)", 0),
        ("LowRank(x, y)", 0),
    ],
)
def test_checks_of_formats(text: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = f"from tensorlrf.factors import {', '.join(counts.FORMATS)}\n{text}"
    trees = {"tensorlrf/ops/_a.py": ast.parse(taken), "tensorlrf/factors/_b.py": ast.parse(taken)}
    trees["tensorlrf/nn/_c.py"] = ast.parse(text)  # a name of its own, which is no format
    monkeypatch.setattr(counts, "trees", lambda: trees)
    assert counts.format_checks().number == count


def test_two_checkouts_stand_side_by_side() -> None:
    told = table({"loops": Count(2, ["a", "b"], 90)}, {"loops": Count(9, [], 265)})
    assert "| loops | 9 | 2 | 265 -> 90 |" in told
    assert "- loops: a; b" in told
