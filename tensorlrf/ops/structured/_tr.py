"""A ring times x: the cores of the columns take x in, one product each, and those of the rows give
y; or both sides merged into one matrix each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.factors import TRFactors
from tensorlrf.factors.algebra import chain_product, product_order
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.structured._form import LinearForm


def _sides(factors: TRFactors) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The cores of the rows and those of the columns."""
    splits = factors.splits
    assert splits is not None
    return factors.cores[: splits[0]], factors.cores[splits[0] :]


def _run(path: str, factors: TRFactors, x: Tensor) -> Tensor:
    out, into = _sides(factors)
    if path == "fold":
        first = chain_product(into).transpose(1, 2).flatten(0, 1)  # (r_p r_0, n)
        last = chain_product(out).permute(1, 2, 0).flatten(1)  # (m, r_p r_0)
        return F.linear(F.linear(x, first), last)
    return _give(out, _take(into, x))


def _take(cores: Sequence[Tensor], x: Tensor) -> Tensor:
    """(..., n) to (..., r_p, r_0). The state is (..., r_p, r_k n_k, rest)."""
    rest = math.prod([core.shape[1] for core in cores[1:]])
    r, n, after = cores[0].shape
    t = torch.unflatten(x, -1, (n, rest))
    t = torch.matmul(cores[0].transpose(1, 2).flatten(0, 1), t)
    t = torch.unflatten(t, -2, (r, after))  # (..., r_p, r', rest)
    for core in cores[1:]:
        r, n, after = core.shape
        rest //= n
        t = torch.unflatten(t, -1, (n, rest)).flatten(-3, -2)
        t = torch.matmul(core.permute(2, 0, 1).flatten(1), t)
    return t.squeeze(-1)


def _give(cores: Sequence[Tensor], t: Tensor) -> Tensor:
    """(..., r_p, r_0) to (..., m). The state is (..., r_p, m_0 .. m_{k-1}, r_k)."""
    t = t.unsqueeze(-2)
    for core in cores[:-1]:
        _, m, after = core.shape
        t = F.linear(t, core.flatten(1).T)
        t = torch.unflatten(t, -1, (m, after)).flatten(-3, -2)
    weight = cores[-1].permute(1, 2, 0).flatten(1)  # (m, r_p r)
    return F.linear(t.transpose(-3, -2).flatten(-2), weight).flatten(-2)


def _cost(counter: Counter, path: str, factors: TRFactors, rows: int) -> None:
    out, into = (_sizes(cores) for cores in _sides(factors))
    ring, first = out[0][0], into[0][0]  # r_0, r_p
    m, n = factors.shape
    if path == "fold":
        _rebuild_sides(counter, into, out)
        counter.matmul(rows, n, first * ring)
        counter.matmul(rows, first * ring, m)
        return
    rest = n
    for k, (r, size, after) in enumerate(into):
        rest //= size
        if k == 0:
            counter.products(rows, r * after, size, rest)
        else:
            counter.products(rows * first, after, r * size, rest)
    done = 1
    for r, size, after in out[:-1]:
        counter.matmul(rows * first * done, r, size * after)
        done *= size
    r, size, _ = out[-1]
    counter.matmul(rows * done, first * r, size)


def _sizes(cores: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    return [(c.shape[0], c.shape[1], c.shape[2]) for c in cores]


def _rebuild_sides(counter: Counter, *sides: Sequence[tuple[int, int, int]]) -> None:
    for side in sides:
        for rows, inner, columns in product_order(side):
            counter.matmul(rows, inner, columns)


def _rebuild(counter: Counter, factors: TRFactors) -> None:
    half = max(1, len(factors.cores) // 2)
    first, second = _sizes(factors.cores[:half]), _sizes(factors.cores[half:])
    if not second:
        return
    _rebuild_sides(counter, first, second)
    left, right = (math.prod([n for _, n, _ in side]) for side in (first, second))
    counter.matmul(left, first[0][0] * second[0][0], right)


FORM = LinearForm[TRFactors](lambda _: ("chain", "fold"), _run, _cost, _rebuild)
