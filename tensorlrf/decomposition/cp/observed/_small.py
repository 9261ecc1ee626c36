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
    last = len(columns) - 1
    fronts = np.ones((1, by_pairs[0].shape[1])), np.ones((1, r))  # products of what is before k
    for k, u in enumerate(columns):
        if k:
            fronts = (
                khatri_rao((fronts[0], by_pairs[k - 1])),
                khatri_rao((fronts[1], columns[k - 1])),
            )
        if k in fixed:
            continue
        behind = (weights, weighted) if k == last else (grams[last - 1 - k], products[last - 1 - k])
        system = _along(behind[0], fronts[0], len(u), k == last)[:, place]  # (n, r, r)
        rhs, old = _along(behind[1], fronts[1], len(u), k == last), u * sizes
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


def _along(part: Array, front: Array, n: int, last: bool) -> Array:
    """(n, q) of what is contracted behind a mode, with the columns in `front` (L, q) of it; of the
    last mode, of the tensor itself."""
    if last:
        product: Array = part.reshape(-1, n).T @ front
        return product
    if len(front) == 1:
        return part.reshape(n, -1)
    found: Array = np.einsum("lnq,lq->nq", part.reshape(len(front), n, -1), front)
    return found


def small_model(columns: Sequence[Array], sizes: Array) -> Array:
    """What columns and their sizes stand for."""
    front = reduce(lambda a, b: khatri_rao((a, b)), columns[:-1])
    whole: Array = front @ (columns[-1] * sizes).T
    return whole.reshape([len(u) for u in columns])
