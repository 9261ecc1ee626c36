"""Mutants drawn at random: a seed, so many of each folder, one a function at most."""

from __future__ import annotations

import ast
import random
from collections import defaultdict
from pathlib import Path

from bench.house.trees import functions
from bench.mutants.edits import edits_of
from bench.mutants.mutant import ROOT, Mutant, owners, sources, stem_of

LEAST = 4
"""Of a folder."""
NOT_SEEN = ("kernel", "_tile", "_grid")
"""Triton's language: it is compiled or interpreted from its text, so no probe says who ran it."""


def draw(n: int, seed: int, root: Path = ROOT, keep: list[Mutant] | None = None) -> list[Mutant]:
    """`n` mutants, of each folder in proportion to its lines and `LEAST` at least; those of `keep`
    stay, and functions that have one get no second."""
    draws = random.Random(seed)
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sources(root):
        if path.stem not in NOT_SEEN:
            files[stratum(path, root)].append(path)
    sizes = {
        folder: sum(len(path.read_text().splitlines()) for path in paths)
        for folder, paths in files.items()
    }
    chosen = list(keep or [])
    taken = {(mutant.stem, mutant.function) for mutant in chosen}
    for folder, count in _shares(sizes, n).items():
        pool: dict[str, list[Mutant]] = defaultdict(list)
        for path in files[folder]:
            for mutant in mutants_of(path, folder):
                pool[mutant.kind].append(mutant)
        count -= sum(mutant.folder == folder for mutant in chosen)
        while count > 0 and pool:
            kind = draws.choice(sorted(pool))  # or constants would be most of them
            mutant = pool[kind].pop(draws.randrange(len(pool[kind])))
            if not pool[kind]:
                del pool[kind]
            if (mutant.stem, mutant.function) not in taken:
                taken.add((mutant.stem, mutant.function))
                chosen.append(mutant)
                count -= 1
    return sorted(chosen, key=lambda m: (m.folder, m.stem, m.function))


def stratum(path: Path, root: Path = ROOT) -> str:
    """The folder of a file; one for all kernels, and one for the files beside the folders."""
    inside = path.parent.relative_to(root).parts
    if inside[0] == "kernels":
        return "kernels"
    return "/".join(inside[1:3]) or "."


def mutants_of(path: Path, folder: str) -> list[Mutant]:
    """Every mutant of one file, but for functions that stand there twice: overloads, setters."""
    text = path.read_text()
    lines = text.splitlines()
    names = [name for name, _ in functions(ast.parse(text))]
    found = []
    for edit in edits_of(text):
        if names.count(edit.function) == 1:
            line = lines[edit.line].strip()
            own = [n for n, owner in owners(text) if owner == edit.function]
            nth = sum(lines[n].strip() == line for n in own if n < edit.line)
            column = edit.column - lines[edit.line].index(line)
            place = (folder, stem_of(path), edit.function, line, nth, column)
            found.append(Mutant(*place, edit.was, edit.now, edit.kind))
    return found


def _shares(sizes: dict[str, int], n: int) -> dict[str, int]:
    """How many of each folder: the largest remainders get what is left."""
    spare = n - LEAST * len(sizes)
    exact = {folder: spare * size / sum(sizes.values()) for folder, size in sizes.items()}
    counts = {folder: LEAST + int(share) for folder, share in exact.items()}
    rest = sorted(exact, key=lambda folder: exact[folder] % 1, reverse=True)
    for folder in rest[: n - sum(counts.values())]:
        counts[folder] += 1
    return counts
