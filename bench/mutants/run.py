"""Mutants against the tests that reach them, each in a copy of the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.mutants.mutant import PACKAGES, ROOT, Mutant

COPIED = (
    *PACKAGES,
    *("tests", "bench", "examples", "docs", "pyproject.toml", "Makefile", ".gitignore", "LICENSE"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md"),
)
START = 60.0
"""Seconds that a run may take beside its tests: imports, and a neighbour on the cores."""


def copy_tree(target: Path, root: Path = ROOT) -> Path:
    """What tests need of the repository."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in COPIED:
        given = root / name
        if given.is_dir():
            shutil.copytree(given, target / name, ignore=ignored)
        elif given.exists():
            shutil.copy(given, target / name)
    return target


def nearest(tests: list[str], seconds: dict[str, float], mutant: Mutant, most: float) -> list[str]:
    """Those that take `most` seconds together: of the mutant's own folder first, then of others,
    the files in turn and quick tests first; a single one at least."""
    turns: dict[str, int] = {}

    def order(test: str) -> tuple[bool, int, float]:
        file = test.partition("::")[0]
        turns[file] = turns.get(file, 0) + 1
        at_home = mutant.folder.split("/")[0] in file
        return not at_home, turns[file], seconds[test]

    chosen, spent = [], 0.0
    for test in sorted(sorted(tests, key=seconds.__getitem__), key=order):
        if chosen and spent + seconds[test] > most:
            continue
        chosen.append(test)
        spent += seconds[test]
    return chosen


def outcome(mutant: Mutant, tests: list[str], seconds: float, tree: Path) -> str:
    """ "killed", "survived", "not reached" or "gone", of a tree that is as it was afterwards."""
    if mutant.find(tree) is None:
        return "gone"
    if not tests:
        return "not reached"
    path, _ = mutant.find(tree) or (tree, 0)
    text = path.read_text()
    mutant.apply(tree)
    try:
        return _run(tests, 4 * seconds + START, tree)
    finally:
        path.write_text(text)


def _run(tests: list[str], limit: float, tree: Path) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (tree, tree / "kernels"))),
        "PYTHONDONTWRITEBYTECODE": "1",  # a file is changed twice within a second
        "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return "killed"
    return "survived" if done.returncode == 0 else "killed"
