"""Texts of `bench/questions.py`: first sentences of SciPy's docstrings, and texts of other kinds.

The task is to tell which part of SciPy a docstring is from. Sources are read, not imported. Files
are what is split, so that no two sets have near copies of each other.
"""

from __future__ import annotations

import ast
import importlib.util
import pydoc_data.topics
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PARTS = (
    "integrate", "interpolate", "linalg", "ndimage", "optimize", "signal", "sparse", "spatial",
    "special", "stats",
)  # fmt: skip
A_FILE = 12
"""Docstrings of one file, at the most."""

COUNTS = {"train": 40, "valid": 12, "test": 40}
"""Docstrings of each part, about: files are split whole, and the small parts have fewer."""


@dataclass(frozen=True)
class Split:
    """texts   first sentences of docstrings
    labels  of each the number of its part in PARTS
    files   of each the number of its file
    """

    texts: list[str]
    labels: list[int]
    files: list[int]


def docstrings() -> dict[str, Split]:
    """By the names of COUNTS; the same in every call."""
    splits = {name: Split([], [], []) for name in COUNTS}
    number = 0
    for label, part in enumerate(PARTS):
        files = [texts[:A_FILE] for texts in _files(part)]
        had = dict.fromkeys(COUNTS, 0)
        for k in np.random.default_rng(label).permutation(len(files)):
            # To the set that lacks most, so that parts with few docstrings have some in each.
            name = min(COUNTS, key=lambda n: had[n] / COUNTS[n])
            if had[name] >= COUNTS[name]:
                break
            had[name] += len(files[k])
            splits[name].texts.extend(files[k])
            splits[name].labels.extend([label] * len(files[k]))
            splits[name].files.extend([number] * len(files[k]))
            number += 1
    return splits


def _files(part: str) -> Iterator[list[str]]:
    """Of each file of a part its docstrings, none of which an earlier one had."""
    found = importlib.util.find_spec("scipy")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("scipy is missing: pip install scipy")
    seen: set[str] = set()
    for path in sorted((Path(found.origin).parent / part).rglob("*.py")):
        if "tests" in path.parts:
            continue
        texts = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                text = _first_sentences(ast.get_docstring(node) or "", part)
                if text and text not in seen:
                    texts.append(text)
                    seen.add(text)
        if texts:
            yield texts


def _first_sentences(doc: str, part: str) -> str:
    """What comes before the parameters, without markup and the name of the part; empty for what is
    too short to tell anything."""
    head = re.split(r"\n\s*(?:Parameters|Attributes|Methods|Returns|Notes|Examples)\n", doc)[0]
    head = re.sub(r"\.\. .*|>>>.*|:[a-z:]+:|[`*_{}\\$]", " ", head)
    words = [word for word in head.split() if part not in word.lower() and "scipy" not in word]
    return " ".join(words[:40]) if len(words) >= 6 else ""


def of_python() -> str:
    """What the standard library says of Python's own language, as `help` prints it."""
    return "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
