"""A sweep over what is observed of a small tensor, by numpy: calls are what it costs, and numpy's
are the shorter ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorlrf.decomposition.linalg.observed._rows import TINY
from tensorlrf.factors.algebra import khatri_rao

Array = NDArray[Any]


def small_sweep(
    weights: Array,
    weighted: Array,
    columns: list[Array],
    sizes: Array,
    fixed: frozenset[int],
    ridge: float,
) -> tuple[list[Array], Array]:
    """Columns of unit length and their sizes (r,), after one pass over the modes.

    weights, weighted  W and W X, of the shape of the tensor
    """
    columns = list(columns)
    r = columns[0].shape[1]
    first, second, place = _two_by_two(r)
    by_pairs = [u[:, first] * u[:, second] for u in columns]
    grams, products = _behind(weights, by_pairs), _behind(weighted, columns)
    for k, u in enumerate(columns):
        if k in fixed:
            continue
        system = _along(weights, by_pairs, grams, k)[:, place]  # (n, r, r)
        rhs, old = _along(weighted, columns, products, k), u * sizes
        diagonal = system[:, range(r), range(r)]
        length = np.maximum(np.sqrt(diagonal.mean(0)), TINY)
        system = system / (length[:, None] * length)
        rest = rhs / length - np.einsum("nij,nj->ni", system, old * length)
        most = np.maximum(system[:, range(r), range(r)].max(1), TINY)
        system[:, range(r), range(r)] += ridge * most[:, None]
        rows = old + np.linalg.solve(system, rest[..., None])[..., 0] / length
        sizes = np.sqrt(np.einsum("nr,nr->r", rows, rows))
        columns[k] = rows / np.maximum(sizes, TINY)
        by_pairs[k] = columns[k][:, first] * columns[k][:, second]
    return columns, sizes


@cache
def _two_by_two(r: int) -> tuple[Array, Array, Array]:
    first, second = np.triu_indices(r)
    place = np.empty((r, r), dtype=np.intp)
    place[first, second] = place[second, first] = np.arange(len(first))
    return first, second, place


def _behind(tensor: Array, columns: Sequence[Array]) -> list[Array]:
    """The tensor contracted with the columns of the modes behind the last but one, and so on."""
    part = tensor.reshape(-1, tensor.shape[-1]) @ columns[-1]
    parts = [part]
    for u in reversed(columns[1:-1]):
        part = np.einsum("lnq,nq->lq", part.reshape(-1, *u.shape), u)
        parts.append(part)
    return parts


def _along(tensor: Array, columns: list[Array], parts: list[Array], mode: int) -> Array:
    """(n_mode, q) of it, with the columns in front as they are now."""
    n, last = tensor.shape[mode], len(columns) - 1
    if mode == 0:
        return parts[-1].reshape(n, -1)
    front = reduce(lambda a, b: khatri_rao((a, b)), columns[:mode])
    if mode == last:
        product: Array = tensor.reshape(-1, n).T @ front
        return product
    part = parts[last - 1 - mode].reshape(len(front), n, -1)
    found: Array = np.einsum("lnq,lq->nq", part, front)
    return found
