"""A tensor's modes gathered into the few dimensions that the kernel has, by sizes and strides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, pairwise
from typing import NamedTuple

_TILE = 32  # indices of a K tile
_GATHER = 1.25  # time of a K tile whose factor is a product of two rows, over that of one


class Group(NamedTuple):
    """Modes that are one dimension of the tensor, the first slowest; without modes of size one."""

    modes: tuple[int, ...]
    size: int
    stride: int


class Groups(NamedTuple):
    """How the kernel sees a tensor: free indices (p, q), contracted ones (o, a, b)."""

    p: Group
    q: Group
    o: Group
    a: Group
    b: Group

    @property
    def inner(self) -> int:
        """Indices of the K dimension."""
        return self.a.size * self.b.size


def groups_of(sizes: Sequence[int], strides: Sequence[int], modes: Sequence[int]) -> Groups | None:
    """Groups for the contraction of `modes`; None where no grouping fits the strides.

    Free modes keep their order. Those contracted are taken by stride, the smallest innermost.
    """
    free = [k for k in range(len(sizes)) if k not in modes and sizes[k] != 1]
    ordered = sorted((k for k in modes if sizes[k] != 1), key=lambda k: -strides[k])
    front = next(_cuts(sizes, strides, free, 2), None)
    if front is None:
        return None
    found = min(_cuts(sizes, strides, ordered, 3), key=lambda cut: _cost(*cut), default=None)
    return None if found is None else Groups(*front, *found)


def _cuts(
    sizes: Sequence[int], strides: Sequence[int], modes: Sequence[int], parts: int
) -> Iterator[list[Group]]:
    """All ways to cut `modes` into runs that are one dimension each, the earlier ones empty
    first."""
    for ends in combinations_with_replacement(range(len(modes) + 1), parts - 1):
        bounds = (0, *ends, len(modes))
        runs = [tuple(modes[i:j]) for i, j in pairwise(bounds)]
        if all(_is_one(sizes, strides, run) for run in runs):
            yield [
                Group(run, math.prod(sizes[k] for k in run), strides[run[-1]] if run else 0)
                for run in runs
            ]


def _is_one(sizes: Sequence[int], strides: Sequence[int], run: tuple[int, ...]) -> bool:
    return all(strides[i] == sizes[j] * strides[j] for i, j in pairwise(run))


def _cost(o: Group, a: Group, b: Group) -> float:
    """Time of the products with these groups, over that of one long K dimension, and the rows of
    Khatri-Rao products that have to be made, over all there are."""
    inner = a.size * b.size
    padded = -(-inner // _TILE) * _TILE / inner
    # The sum over an outer index is scaled, which takes about as long as 16 of its products.
    time = padded * (1 + 16 / inner if o.modes else 1) * (_GATHER if a.modes else 1)
    made = sum(group.size for group in (o, a, b) if len(group.modes) > 1)
    return time + made / (o.size * inner)
