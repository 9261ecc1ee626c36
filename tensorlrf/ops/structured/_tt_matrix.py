"""A TT-matrix times x: one product a core, from either end, or cut in the middle and run as the
Kronecker sum that it is there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.factors import TTMatrix
from tensorlrf.factors._tt import product_order
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.structured._form import LinearForm
from tensorlrf.ops.structured._kron import kron_cost, kron_product

Sizes = Sequence[tuple[int, int, int, int]]
"""(r, m, n, r') of every core."""


def _paths(factors: TTMatrix) -> tuple[str, ...]:
    # A train of two cores is a Kronecker sum as it stands.
    return ("chain", "fold") if len(factors.cores) > 2 else ("chain",)


def _run(path: str, factors: TTMatrix, x: Tensor) -> Tensor:
    m, n = factors.shape
    rows, columns = math.prod(factors.row_sizes), math.prod(factors.column_sizes)
    if columns != n:
        x = F.pad(x, (0, columns - n))
    cores, sizes = factors.cores, _sizes(factors)
    if path == "fold":
        y = kron_product(*_halves(cores, _cut(sizes)), x)
    elif _forwards(sizes):
        y = _from_first(cores, x)
    else:
        y = _from_last(cores, x)
    return y if rows == m else y[..., :m]


def _from_first(cores: Sequence[Tensor], x: Tensor) -> Tensor:
    """The state is (..., m_0, .., m_{k-1}, r_k n_k, n_{k+1} .. n_{d-1})."""
    rest = math.prod([core.shape[2] for core in cores[1:]])
    t = torch.unflatten(x, -1, (cores[0].shape[2], rest))
    for k, core in enumerate(cores):
        r, m, n, after = core.shape
        weight = core.permute(1, 3, 0, 2).reshape(m * after, r * n)
        if k == len(cores) - 1:
            t = F.linear(t.squeeze(-1), weight)
            break
        t = torch.matmul(weight, t)  # (.., m r', rest)
        following = cores[k + 1].shape[2]
        rest //= following
        t = torch.unflatten(t, -1, (following, rest))
        t = torch.unflatten(t, -3, (m, after)).flatten(-3, -2)
    return t.flatten(-len(cores))


def _from_last(cores: Sequence[Tensor], x: Tensor) -> Tensor:
    """The state is (..., n_0 .. n_k, r_{k+1}, m_{k+1} .. m_{d-1})."""
    before = math.prod([core.shape[2] for core in cores[:-1]])
    r, m, n, _ = cores[-1].shape
    t = F.linear(torch.unflatten(x, -1, (before, n)), cores[-1].reshape(r * m, n))
    t = torch.unflatten(t, -1, (r, m))
    for core in reversed(cores[:-1]):
        r, m, n, after = core.shape
        before //= n
        t = torch.unflatten(t, -3, (before, n)).flatten(-3, -2)  # (..., before, n r', done)
        t = torch.matmul(core.reshape(r * m, n * after), t)  # (..., before, r m, done)
        t = torch.unflatten(t, -2, (r, m)).flatten(-2)
    return t.flatten(-3)


def _halves(cores: Sequence[Tensor], cut: int) -> tuple[Tensor, Tensor]:
    """a (R, m_L, n_L) and b (R, m_R, n_R) of the cores before the cut and behind it."""
    first, second = _merged(cores[:cut]), _merged(cores[cut:])
    return first[0].permute(2, 0, 1), second[..., 0]


def _merged(cores: Sequence[Tensor]) -> Tensor:
    """One core (r, prod m_k, prod n_k, r')."""
    merged = cores[0]
    for core in cores[1:]:
        r, m, n, _ = merged.shape
        _, more_m, more_n, after = core.shape
        both = merged.flatten(0, 2) @ core.flatten(1)
        both = both.reshape(r, m, n, more_m, more_n, after).transpose(2, 3)
        merged = both.reshape(r, m * more_m, n * more_n, after)
    return merged


# ---- costs --------------------------------------------------------------------------------------


def _sizes(factors: TTMatrix) -> list[tuple[int, int, int, int]]:
    return [(c.shape[0], c.shape[1], c.shape[2], c.shape[3]) for c in factors.cores]


def _steps(sizes: Sizes, forwards: bool) -> list[tuple[int, int, int, int]]:
    """Of every product for one row of x: how many there are, and their (rows, inner, columns)."""
    steps = []
    if forwards:
        done, rest = 1, math.prod([n for _, _, n, _ in sizes])
        for r, m, n, after in sizes:
            rest //= n
            steps.append((done, m * after, r * n, rest))
            done *= m
    else:
        done, rest = 1, math.prod([n for _, _, n, _ in sizes])
        for r, m, n, after in reversed(sizes):
            rest //= n
            steps.append((rest, r * m, n * after, done))
            done *= m
    return steps


def _forwards(sizes: Sizes) -> bool:
    """Whether beginning with the first core multiplies less than beginning with the last."""
    first, last = ([math.prod(s) for s in _steps(sizes, way)] for way in (True, False))
    return sum(first) <= sum(last)


def _cut(sizes: Sizes) -> int:
    """Before which core the train is cut, so that the two halves multiply least."""

    def multiply_adds(cut: int) -> int:
        one, other = _half(sizes[:cut]), _half(sizes[cut:])
        s, (m1, n1), (m2, n2) = sizes[cut][0], one, other
        return s * min(n1 * m2 * (n2 + m1), m1 * n2 * (n1 + m2))

    works = [multiply_adds(cut) for cut in range(1, len(sizes))]
    return 1 + works.index(min(works))


def _half(sizes: Sizes) -> tuple[int, int]:
    return math.prod([m for _, m, _, _ in sizes]), math.prod([n for _, _, n, _ in sizes])


def _cost(counter: Counter, path: str, factors: TTMatrix, rows: int) -> None:
    sizes = _sizes(factors)
    if path == "fold":
        cut = _cut(sizes)
        for half in (sizes[:cut], sizes[cut:]):
            r, m, n, _ = half[0]
            for inner, more_m, more_n, after in half[1:]:
                counter.matmul(r * m * n, inner, more_m * more_n * after)
                m, n = m * more_m, n * more_n
        kron_cost(counter, sizes[cut][0], _half(sizes[:cut]), _half(sizes[cut:]), rows)
        return
    for batch, m, inner, columns in _steps(sizes, _forwards(sizes)):
        if columns == 1 or batch == 1:
            counter.matmul(rows * batch * columns, inner, m)
        else:
            counter.products(rows * batch, m, inner, columns)


def _rebuild(counter: Counter, factors: TTMatrix) -> None:
    for rows, inner, columns in product_order([(r, m * n, q) for r, m, n, q in _sizes(factors)]):
        counter.matmul(rows, inner, columns)


FORM = LinearForm[TTMatrix](_paths, _run, _cost, _rebuild)
