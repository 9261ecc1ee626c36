"""Which tests run which lines: probes before the lines of all mutants, and one run of the tests.

Also the plugin of that run, where it stands alone as `PROBE`: `hit` is what the probes call.
"""

from __future__ import annotations

import ast
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

PROBE = "_reached"
LONGEST = 30.0
"""Seconds that a test may take and still be run against mutants."""

_seen: set[tuple[int, str]] = set()


def hit(number: int) -> None:
    """Mutant `number` has its line run by the present test, or by a process that it started."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    if test and (number, test) not in _seen:
        _seen.add((number, test))
        _note(number, test)


def pytest_runtest_logreport(report: Any) -> None:
    """The time of a test that passed; others are not run against mutants."""
    if report.when == "call" and report.passed:
        _note(report.duration, report.nodeid)


def _note(*values: Any) -> None:
    with open(os.environ["REACHED"], "a") as file:  # a line at a time: processes share it
        file.write(json.dumps(values) + "\n")


def put_probes(files: dict[Path, list[tuple[int, int]]]) -> None:
    """Write each file with a call before the statement at each (number of mutant, line from 0)."""
    for path, places in files.items():
        tree = ast.parse(path.read_text())
        for number, line in places:
            block, at = _innermost(tree, line + 1)
            block.insert(at, ast.parse(f"__import__({PROBE!r}).hit({number})").body[0])
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)))


def _innermost(tree: ast.AST, lineno: int) -> tuple[list[ast.stmt], int]:
    """The block of statements, and where in it, of the smallest statement with that line."""
    found: tuple[list[ast.stmt], int] | None = None
    for node in ast.walk(tree):  # outer ones first
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            for k, statement in enumerate(block if isinstance(block, list) else []):
                end = statement.end_lineno or statement.lineno
                if hasattr(statement, "col_offset") and statement.lineno <= lineno <= end:
                    found = block, k  # type: ignore[assignment]
    assert found is not None
    return found


def reached(notes: Path, n: int) -> tuple[list[list[str]], dict[str, float]]:
    """(of each mutant the tests that reach it, the seconds of each test that passed)."""
    tests: dict[int, set[str]] = defaultdict(set)
    seconds: dict[str, float] = {}
    for line in notes.read_text().splitlines():
        value, test = json.loads(line)
        if value is None:  # a file, that has been run to its end
            continue
        if isinstance(value, int):
            tests[value].add(test)
        elif value < LONGEST:
            seconds[test] = value
    return [sorted(tests[k] & set(seconds)) for k in range(n)], seconds
