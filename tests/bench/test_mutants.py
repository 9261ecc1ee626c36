"""Planted faults: they are found where they moved to, planted, killed by a test, and taken back."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.mutants.__main__ import compare, reach
from bench.mutants.draw import draw, mutants_of
from bench.mutants.edits import edits_of
from bench.mutants.moved import (
    ALIKE,
    BY_HAND,
    SAME,
    Moved,
    followed,
    read_moved,
    relocated,
    write_moved,
)
from bench.mutants.mutant import Mutant, read_list, write_list
from bench.mutants.reach import put_probes, reached
from bench.mutants.results import add_result, counts, read_results, table
from bench.mutants.run import (
    Outcome,
    copy_tree,
    killer_among,
    mirrored,
    nearest,
    outcome,
    run_tests,
)

SOURCE = '''\
"""Sums."""


def total(a, b):
    """Of both."""
    return a + b


class Shape:
    def area(self, m, n):
        if m < 0:
            raise ValueError("m" + str(m))
        return m * n


def unused(n):
    return n + 1
'''
TESTS = """\
import sys

from tensorlrf._sums import Shape, total


def test_total():
    assert total(1, 2) == 3


def test_area():
    assert Shape().area(2, 3) == 6


def test_total_in_a_loop():
    assert [total(k, 0) for k in range(3)] == [0, 1, 2]
"""

RUNS_TESTS = pytest.mark.slow
"""In processes of their own, one after the other."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package of one file, and its tests."""
    for folder in ("tensorlrf", "kernels/tensorlrf_kernels", "tests"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "tensorlrf/__init__.py").write_text("")
    (tmp_path / "tensorlrf/_sums.py").write_text(SOURCE)
    (tmp_path / "tests/test_sums.py").write_text(TESTS)
    return tmp_path


def mutant(tree: Path, changed: str) -> Mutant:
    """The one whose line becomes `changed`."""
    found = mutants_of(tree / "tensorlrf/_sums.py", ".")
    (one,) = [m for m in found if m.changed == changed]
    return one


def test_every_edit_changes_its_line_and_leaves_python() -> None:
    edits = edits_of(SOURCE)
    assert {e.function for e in edits} == {"total", "Shape.area", "unused"}
    lines = SOURCE.splitlines()
    for edit in edits:
        line = lines[edit.line]
        end = edit.column + len(edit.was)
        assert line[edit.column : end] == edit.was
        assert "raise" not in line  # what errors say is left alone
        faulty = [*lines]
        faulty[edit.line] = line[: edit.column] + edit.now + line[end:]
        assert ast.dump(ast.parse("\n".join(faulty))) != ast.dump(ast.parse(SOURCE))


def test_a_fault_is_planted_in_its_line_alone(tree: Path) -> None:
    path = mutant(tree, "return a - b").apply(tree)
    before, after = SOURCE.splitlines(), path.read_text().splitlines()
    assert [(x, y) for x, y in zip(before, after, strict=True) if x != y] == [
        ("    return a + b", "    return a - b")
    ]


def test_it_is_found_in_another_file_function_and_order_or_said_to_be_gone(tree: Path) -> None:
    fault, path = mutant(tree, "return m / n"), tree / "tensorlrf/_sums.py"
    assert fault.find(tree) == (path, 12)
    moved = tree / "tensorlrf/sums/_shape.py"
    moved.parent.mkdir()
    moved.write_text("import math\n\n\n" + SOURCE[SOURCE.index("class") : SOURCE.index("def unus")])
    path.write_text(SOURCE[: SOURCE.index("class")])
    assert fault.find(tree) == (moved, 7)
    moved.write_text(moved.read_text().replace("def area", "def size_of"))
    assert fault.find(tree) == (moved, 7)
    moved.write_text(moved.read_text().replace("return m * n", "return n * m"))
    assert fault.find(tree) is None
    with pytest.raises(LookupError, match="return m"):
        fault.apply(tree)


def test_of_two_lines_alike_the_right_one_is_changed(tree: Path) -> None:
    path = tree / "tensorlrf/_sums.py"
    path.write_text("def f(a):\n    if a:\n        return a + 1\n    return a + 1\n")
    faults = [m for m in mutants_of(path, ".") if m.changed == "return a - 1"]
    assert [m.find(tree) for m in faults] == [(path, 2), (path, 3)]
    faults[1].apply(tree)
    assert path.read_text().splitlines()[2:] == ["        return a + 1", "    return a - 1"]


def test_a_draw_repeats_and_keeps_what_it_is_told_to(tree: Path, tmp_path: Path) -> None:
    drawn = draw(4, 0, tree)
    assert drawn == draw(4, 0, tree)
    assert len(drawn) == len({m.function for m in drawn}) == 3  # one a function at most
    kept = mutant(tree, "return m / n")
    assert kept in draw(4, 1, tree, keep=[kept])
    write_list(drawn, 0, tmp_path / "list.json")
    assert read_list(tmp_path / "list.json") == drawn


def test_probes_say_which_tests_run_a_line(tree: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = ("return a - b", "return m / n", "return n - 1")
    probed = copy_tree(tree / "copy", tree)
    files: dict[Path, list[tuple[int, int]]] = {}
    for number, name in enumerate(names):
        place = mutant(tree, name).find(probed)
        assert place is not None
        files.setdefault(place[0], []).append((number, place[1]))
    put_probes(files)
    run_tests(probed, tree / "notes", ["tests"])
    tests, seconds = reached(tree / "notes", 3)
    assert set(seconds) == {
        "tests/test_sums.py::test_total",
        "tests/test_sums.py::test_area",
        "tests/test_sums.py::test_total_in_a_loop",
    }
    assert tests == [
        ["tests/test_sums.py::test_total", "tests/test_sums.py::test_total_in_a_loop"],
        ["tests/test_sums.py::test_area"],
        [],
    ]


@RUNS_TESTS
def test_a_fault_is_killed_by_a_test_that_fails_and_taken_back(tree: Path) -> None:
    total, area = "tests/test_sums.py::test_total", "tests/test_sums.py::test_area"
    minus, path = mutant(tree, "return a - b"), tree / "tensorlrf/_sums.py"
    assert outcome(minus, [area, total], 1.0, tree) == Outcome("killed", 2, total)
    assert path.read_text() == SOURCE
    assert outcome(minus, [area], 1.0, tree) == Outcome("survived", 1)
    assert outcome(minus, [], 0.0, tree) == Outcome("not reached")
    other = replace(minus, line="return a @ b", function="none")
    assert outcome(other, [total], 1.0, tree) == Outcome("gone")
    assert path.read_text() == SOURCE


@RUNS_TESTS
def test_a_run_that_computes_waits_or_dies_is_told(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "tests/test_ends.py").write_text(
        "import os, time\ndef test_waits(): time.sleep(600)\ndef test_dies(): os._exit(9)\n"
        "def test_computes():\n    while True: pass\n"
    )
    assert killer_among(["tests/test_ends.py::test_dies"], 60, tree) == "exit code 9"
    assert killer_among(["tests/test_ends.py::test_computes"], 1, tree) == "timeout"
    monkeypatch.setattr("bench.mutants.run.WAIT", 0.02)
    assert killer_among(["tests/test_ends.py::test_waits"], 60, tree) == "timeout"


@RUNS_TESTS
def test_a_test_that_is_not_there_kills_nothing(tree: Path) -> None:
    total = "tests/test_sums.py::test_total"
    assert killer_among([total, f"{total}[case]"], 60, tree) is None  # a case fewer
    with pytest.raises(LookupError, match="test_moved"):
        killer_among(["tests/test_moved.py::test_a"], 60, tree)


@RUNS_TESTS
def test_a_file_that_cannot_be_imported_kills(tree: Path) -> None:
    (tree / "tensorlrf/_sums.py").write_text("import nothing\n")
    assert killer_among(["tests/test_sums.py::test_total"], 60, tree) == "tests/test_sums.py"


def test_likely_killers_come_first_and_golden_ones_last() -> None:
    change = ("return a + b", 9, "+", "-")
    fault = Moved("a", "tensorlrf/nn/trains/_sums.py", "total", *change, SAME)
    seconds = {
        "tests/golden/test_frozen.py::test_calls": 0.1,
        "tests/ops/test_a.py::test_other": 0.2,
        "tests/nn/test_b.py::test_package": 1.0,
        "tests/nn/trains/test_b.py::test_first": 1.0,
        "tests/nn/trains/test_b.py::test_second": 2.0,
        "tests/nn/trains/test_c.py::test_long": 50.0,
        "tests/nn/trains/test_sums.py::test_own": 2.5,
        "tests/ops/test_laws.py::TestSums::test_law": 0.3,
    }
    chosen = nearest(list(seconds), seconds, fault, 8.0)
    told = ["own", "first", "second", "law", "package", "other", "calls"]
    assert [test.rpartition("_")[2] for test in chosen] == told
    assert nearest([*seconds][5:6], seconds, fault, 4.0) == [*seconds][5:6]  # one at least


def test_tests_mirror_the_packages() -> None:
    trains = "tests/decomposition/trains/", "tests/decomposition/"
    assert mirrored("tensorlrf/decomposition/trains/_tt_round.py") == ("tt_round", *trains)
    assert mirrored("tensorlrf/io.py") == ("io", "tests/test_io.py", "tests/")
    kernels = "tests/kernels/"
    path = "kernels/tensorlrf_kernels/kron_linear/launch.py"
    assert mirrored(path) == ("kron_linear", kernels, kernels)
    assert mirrored("kernels/tensorlrf_kernels/tune.py") == ("tune", kernels, kernels)


def test_every_drawn_one_is_planted_in_the_line_that_is_there_today() -> None:
    rows = read_moved()
    assert [row.mutant for row in rows] == [mutant.name for mutant in read_list()]
    for row in rows:
        place = row.find()
        remedy = "run `python -m bench.mutants relocate`, and tell in moved.json what it cannot"
        assert place is not None, f"{row.line!r} is not once in {row.function}: {remedy}"
        assert row.line[row.column : row.column + len(row.was)] == row.was
        assert row.how in (SAME, ALIKE) or row.how.startswith(f"{BY_HAND}: ")
        lines = place[0].read_text().splitlines()
        lines[place[1]] = lines[place[1]].replace(row.line, row.changed)
        ast.parse("\n".join(lines))


def test_a_line_is_followed_and_a_rewritten_one_is_changed_likewise(tree: Path) -> None:
    fault, path = mutant(tree, "return m / n"), tree / "tensorlrf/_sums.py"
    (tree / "tensorlrf/sums").mkdir()
    moved = path.rename(tree / "tensorlrf/sums/_shape.py")
    row = relocated(fault, tree)
    assert row is not None
    assert (row.how, row.path, row.changed) == (SAME, "tensorlrf/sums/_shape.py", fault.changed)
    moved.write_text(SOURCE.replace("return m * n", "return m * int(n)").replace("area", "size"))
    assert row.find(tree) is None
    row = relocated(fault, tree)  # in a class of that name
    assert row is not None
    assert (row.how, row.function, row.changed) == (ALIKE, "Shape.size", "return m / int(n)")
    assert row.find(tree) == (moved, 12)
    write_moved([row], tree / "moved.json")
    moved = moved.rename(tree / "tensorlrf/_forms.py")  # told by hand, it is followed there
    assert row.find(tree) is None
    row = followed(replace(row, how=f"{BY_HAND}: rewritten"), tree)
    assert row is not None
    assert row.path == "tensorlrf/_forms.py"
    assert json.loads((tree / "moved.json").read_text())[0]["now"] == "/"
    row.apply(tree)
    assert "return m / int(n)" in moved.read_text()
    moved.write_text(SOURCE.replace("return m * n", "return sum(n for _ in range(m))"))
    assert relocated(fault, tree) is None  # to be told by hand


@RUNS_TESTS
def test_a_map_of_which_tests_reach_what_is_continued(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.mutants.__main__.MAP", tree / "map/reached.jsonl")
    monkeypatch.setattr("bench.mutants.__main__.copy_tree", lambda to: copy_tree(to, tree))
    faults = [mutant(tree, "return a - b"), mutant(tree, "return m / n")]
    rows = [relocated(fault, tree) for fault in faults]
    monkeypatch.setattr("bench.mutants.__main__.read_moved", lambda: rows)
    reach(["tests/test_sums.py"], 1, "tensorlrf/other/*")
    reach(["tests"], 1)  # that file has been run
    assert reached(tree / "map/reached.jsonl", 2)[0] == [[], []]
    reach(["tests"], 1, anew=True)
    assert [len(tests) for tests in reached(tree / "map/reached.jsonl", 2)[0]] == [2, 1]


def test_compare_sets_before_beside_after_and_names_what_died_before_and_lives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for name in "abc":
        add_result(old, name, Outcome("killed", 3, f"test_{name}"))
    add_result(old, "d | e", Outcome("survived", 3))
    add_result(new, "a", Outcome("killed", 1, "test_law"))
    add_result(new, "b", Outcome("survived", 1))
    add_result(new, "d | e", Outcome("killed", 1, "test_law"))
    assert compare(old, new) == 1
    said = capsys.readouterr().out
    assert "| `a` | killed | killed | `test_law` |" in said
    assert "| `d &#124; e` | survived | killed | `test_law` |" in said
    assert "died before, not now: b\ndied before, not now: c" in said
    assert "now: 2 killed, 1 survived" in said
    add_result(new, "b", Outcome("killed", 9, "test_b"))  # run again: the last word counts
    add_result(new, "c", Outcome("gone"))
    assert compare(old, new) == 1  # whoever rewrote its line tells where the fault would be today
    add_result(new, "c", Outcome("killed", 1, "test_c"))
    assert compare(old, new) == 0
    with new.open("a") as file:
        file.write(json.dumps(["a", "surv"])[:-2])  # a run that was ended in the middle of a line
    assert read_results(new)["a"].result == "killed"
    assert counts(read_results(new)) == "4 killed"


def test_what_became_of_them_is_told_by_folder(tree: Path) -> None:
    dead, alive = mutant(tree, "return a - b"), mutant(tree, "return m / n")
    results = {dead.name: Outcome("killed", 1, "test"), alive.name: Outcome("survived", 2)}
    told = table([dead, alive, mutant(tree, "return n - 1")], results).splitlines()
    assert told[0] == "| folder | killed | not run | survived |"
    assert told[2] == "| . | 1 | 1 | 1 |"
    assert told[4:] == [
        f"- survived: {alive.name}",
        f"- not run: {mutant(tree, 'return n - 1').name}",
    ]
