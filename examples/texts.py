"""Texts for calibration and test: news, with how alike people find them, and docstrings.

Lee, Pincombe and Welsh, "An empirical evaluation of models of text document similarity", 2005: 50
short news documents with the mean similarity that people gave each pair, and 300 background
documents from the same source and time. They lie among the test data of the PyPI package
``gensim`` (``pip install --no-deps gensim==4.4.0``; it is not imported).
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import numpy as np
from common import interval, packaged

N_DOCUMENTS = 50


def _folder() -> Path:
    return packaged("gensim", "gensim==4.4.0") / "test" / "test_data"


def _lines(name: str) -> list[str]:
    # lee.cor has a pound sign in Latin-1
    return (_folder() / name).read_text(encoding="latin-1").splitlines()


def background() -> list[str]:
    """The 300 background documents, about 60,000 words: for calibration."""
    return _lines("lee_background.cor")


def documents() -> list[str]:
    """The 50 documents, about 4,000 words: for test."""
    return _lines("lee.cor")


def docstrings(least: int = 400) -> list[str]:
    """SciPy's docstrings of so many characters and more, file by file: texts of another kind than
    news, for calibration. Its sources are read, not imported."""
    found = []
    for path in sorted(packaged("scipy", "scipy").rglob("*.py")):
        if "tests" not in path.parts:
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
            found += [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
    return [text for text in found if len(text) >= least]


@cache
def human_similarities() -> np.ndarray:
    """(50, 50), symmetric: mean judgement of each pair of `documents()`, in [0, 1]."""
    upper = np.loadtxt(_folder() / "similarities0-1.txt")  # zeros below the diagonal
    return np.triu(upper) + np.triu(upper, 1).T


def pearson(embeddings: np.ndarray, judged: np.ndarray) -> float:
    """Correlation of cosine similarities with judgements, over the pairs i < j.

    embeddings (n, d), rows of any length; judged (n, n).
    """
    return _pearson(_cosines(embeddings), judged, np.arange(len(judged)))


def pearson_interval(embeddings: np.ndarray, judged: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval of `pearson` over documents; a document is no pair with itself."""
    cosines = _cosines(embeddings)
    return interval(lambda drawn: _pearson(cosines, judged, drawn), len(judged))


def _cosines(embeddings: np.ndarray) -> np.ndarray:
    rows = embeddings.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def _pearson(cosines: np.ndarray, judged: np.ndarray, drawn: np.ndarray) -> float:
    i, j = np.triu_indices(len(drawn), 1)
    i, j = drawn[i], drawn[j]
    apart = i != j
    i, j = i[apart], j[apart]
    return float(np.corrcoef(cosines[i, j], judged[i, j])[0, 1])
