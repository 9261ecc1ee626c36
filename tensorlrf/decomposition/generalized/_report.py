"""Factors as they are returned, and what is said of them after their cast."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tensorlrf.decomposition.generalized._data import AFFORDABLE, Data
from tensorlrf.decomposition.generalized._dense import BLOCK, quadratic_base
from tensorlrf.decomposition.generalized._loss import Loss
from tensorlrf.decomposition.generalized._nonzeros import CHUNK, Nonzeros, rows_of
from tensorlrf.decomposition.generalized._samples import Sample
from tensorlrf.decomposition.generalized._stack import apart, offsets
from tensorlrf.factors import CPFactors
from tensorlrf.factors.algebra import khatri_rao


def stack_of(factors: CPFactors, scale: float) -> Tensor:
    """Factors over `scale` as a stack, in float64."""
    first, *rest = (f.double() for f in factors.factors)
    return torch.cat([first * (factors.weights.double() / scale), *rest])


def relative_error(data: Data, loss: Loss, stack: Tensor, judge: Sample | None) -> float:
    """Of what the model expects, over the entries that count; on the sample where all are too
    many."""
    norm = data.norm() or 1.0
    if data.sparse is not None and loss.mean is None:
        return _of_a_sparse_one(data.sparse, stack) / norm
    if data.size > AFFORDABLE and data.sparse is not None:
        assert judge is not None  # there is one where all entries are too many
        expected = loss.expected(rows_of(stack, judge.places).prod(0).sum(1))
        counts, x = judge.counts.double(), judge.x.double()
        square = torch.dot(counts, (x - expected) ** 2)
        if judge.corrected:
            head = slice(judge.corrected)
            square -= torch.dot(counts[head], expected[head] ** 2)
        return math.sqrt(max(0.0, float(square))) / norm
    rows = data.rows()
    factors = apart(stack, rows.shape)
    left, right = khatri_rao(factors[: rows.cut]), khatri_rao(factors[rows.cut :])
    step = max(1, BLOCK // len(right))
    square = torch.zeros((), dtype=torch.float64, device=stack.device)
    for start in range(0, len(left), step):
        own = left[start : start + step]
        x, weights = rows.entries(start, start + len(own))
        off = loss.expected(own @ right.T) - x
        square += ((off * off) if weights is None else off * off * weights).sum()
    return math.sqrt(float(square)) / norm


def _of_a_sparse_one(data: Nonzeros, stack: Tensor) -> float:
    """||X - M||, from ||M||^2 and what changes at the nonzeros; their norms are of one size, so
    that little cancels."""
    square = quadratic_base(apart(stack, data.shape))[0]
    places = data.indices + offsets(data.shape, stack.device)
    for start in range(0, len(data.values), CHUNK):
        x = data.values[start : start + CHUNK].double()
        model = rows_of(stack, places[:, start : start + CHUNK]).prod(0).sum(1)
        square = square + torch.dot(x, x - 2 * model)
    return math.sqrt(max(0.0, float(square)))
