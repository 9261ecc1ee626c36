"""How large folders and files are."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from bench.house.trees import ROOT, Count, code_lines, module_of, package_of, trees

MOST_FILES = 22
MOST_LINES = 400


def folders() -> Count:
    """Folders of the packages with more than 22 files."""
    counts = Counter(str(Path(path).parent) for path in trees())
    over = [f"{folder} {n}" for folder, n in counts.most_common() if n > MOST_FILES]
    return Count(len(over), over or [f"most: {counts.most_common(1)[0]}"])


def folders_of_tests() -> Count:
    """Folders of tests with more than 22 files."""
    counts = Counter(str(p.parent.relative_to(ROOT)) for p in (ROOT / "tests").rglob("*.py"))
    over = [f"{folder} {n}" for folder, n in counts.most_common() if n > MOST_FILES]
    return Count(len(over), over)


def long_files() -> Count:
    """Files of the packages with more than 400 lines."""
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in trees()}
    over = [f"{path} {n}" for path, n in lines.items() if n > MOST_LINES]
    return Count(len(over), over)


def code() -> Iterator[tuple[str, Count]]:
    """Files, and lines with code, of each package; no goal."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for path, tree in trees().items():
        sizes[package_of(module_of(path))].append(code_lines(tree))
    for package, lines in sizes.items():
        yield f"files of {package}", Count(len(lines), [], sum(lines))
    of_tests = [
        code_lines(ast.parse(p.read_text())) for p in sorted((ROOT / "tests").rglob("*.py"))
    ]
    yield "files of tests", Count(len(of_tests), [], sum(of_tests))
