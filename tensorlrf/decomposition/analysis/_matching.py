"""How alike two CP models are, term by term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors import CPFactors
from tensorlrf.factors.kinds import check_format


@dataclass(frozen=True)
class FactorMatch:
    """The terms of one CP model, each with one of another.

    Parameters
    ----------
    score : float
        The mean of `scores`, 0 to 1.
    pairs : tuple of int
        Of each term of the first model the term of the second, -1 for none: where one has fewer.
    scores : tuple of float
        Of each pair.

    Examples
    --------
    >>> print(tensorlrf.decomposition.FactorMatch(0.99, (1, 0), (1.0, 0.98)))
    factor match score 0.9900
      term 0 is 1: 1.0000
      term 1 is 0: 0.9800
    """

    score: float
    pairs: tuple[int, ...]
    scores: tuple[float, ...]

    def __str__(self) -> str:
        lines = [f"factor match score {self.score:.4f}"]
        scores = iter(self.scores)
        for term, other in enumerate(self.pairs):
            told = "has none" if other < 0 else f"is {other}: {next(scores):.4f}"
            lines.append(f"  term {term} {told}")
        return "\n".join(lines)


def factor_match_score(
    factors: CPFactors, others: CPFactors, *, weights: bool = True
) -> FactorMatch:
    """How alike two CP models are, whatever the order, signs and lengths of their columns.

    The score of two terms is the absolute product over the modes of the cosines of their columns
    (the congruence of Tucker 1951), with `weights` times 1 - ``|w - v|`` / max(w, v) of their
    norms. Terms are matched so that the sum is largest, by the Hungarian method, exactly at any
    rank.

    Parameters
    ----------
    factors, others : CPFactors
        Of tensors of one shape; of unequal ranks only as many terms are matched as both have.
    weights : bool
        Whether norms of terms count.

    Returns
    -------
    FactorMatch

    Raises
    ------
    ArgumentError
        For what is not CPFactors.
    ShapeError
        For factors of other shapes.

    References
    ----------
    Acar, Dunlavy, Kolda & Morup 2011, section 4.1; Kuhn 1955 (matching).

    Examples
    --------
    >>> f = tensorlrf.CPFactors(torch.tensor([2.0, 1.0]), tuple(torch.eye(3)[:, :2] for _ in "abc"))
    >>> tensorlrf.factor_match_score(f, f).score
    1.0
    """
    check_alike(factors, others)
    table, sizes, other_sizes = congruences(factors, others)
    if weights:
        larger = torch.maximum(sizes[:, None], other_sizes)
        apart = (sizes[:, None] - other_sizes).abs()
        table = table * torch.where(larger > 0, 1 - apart / larger, 1.0)
    return matched(table)


def check_alike(factors: Any, others: Any) -> None:
    """Raises ArgumentError or ShapeError unless both are CPFactors of one shape."""
    for name, given in (("factors", factors), ("others", others)):
        check_format(given, (CPFactors,), name, "pass CPFactors, as cp gives")
    if tuple(factors.shape) != tuple(others.shape):
        raise ShapeError(
            f"factors are of shape {tuple(factors.shape)} and others of shape "
            f"{tuple(others.shape)}; only models of tensors of one shape can be matched"
        )


def congruences(factors: CPFactors, others: CPFactors) -> tuple[Tensor, Tensor, Tensor]:
    """The absolute products of cosines (r, r'), and the norms of the terms of both, float64."""
    one, sizes = _directions(factors)
    two, other_sizes = _directions(others)
    table = torch.ones(len(sizes), len(other_sizes), dtype=torch.float64, device="cpu")
    for u, v in zip(one, two, strict=True):
        table = table * (u.T @ v)
    return table.abs().clamp_max(1.0), sizes, other_sizes


def _directions(factors: CPFactors) -> tuple[list[Tensor], Tensor]:
    sizes = factors.weights.detach().to("cpu", torch.float64).abs()
    units = []
    for u in factors.factors:
        wide = u.detach().to("cpu", torch.float64)
        length = torch.linalg.vector_norm(wide, dim=0)
        units.append(wide / torch.where(length > 0, length, 1.0))
        sizes = sizes * length
    return units, sizes


def matched(table: Tensor) -> FactorMatch:
    """The matching of rows with columns whose sum is largest."""
    values = table.numpy()
    turned = len(values) > values.shape[1]
    columns = assignment(-(values.T if turned else values))
    pairs = [-1] * len(values)
    for row, column in enumerate(columns):
        if turned:
            pairs[column] = row
        else:
            pairs[row] = column
    scores = tuple(float(values[i, j]) for i, j in enumerate(pairs) if j >= 0)
    return FactorMatch(sum(scores) / len(scores), tuple(pairs), scores)


def assignment(costs: np.ndarray[Any, Any]) -> list[int]:
    """Of each row (no more than columns) a column of its own, at the least sum of costs.

    Shortest augmenting paths with potentials (the Hungarian method of Kuhn 1955 as Jonker &
    Volgenant 1987 have it): O(rows^2 columns).
    """
    rows, columns = costs.shape
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, dtype=int)  # the row of a column, counted from one; 0 for none
    for row in range(1, rows + 1):
        owner[0], here = row, 0
        distance = np.full(columns + 1, np.inf)
        before = np.zeros(columns + 1, dtype=int)
        seen = np.zeros(columns + 1, dtype=bool)
        while True:
            seen[here] = True
            reduced = costs[owner[here] - 1] - row_price[owner[here]] - column_price[1:]
            nearer = ~seen[1:] & (reduced < distance[1:])
            distance[1:][nearer], before[1:][nearer] = reduced[nearer], here
            open_ = np.where(seen, np.inf, distance)
            open_[0] = np.inf
            nxt = int(open_.argmin())
            step = open_[nxt]
            row_price[owner[seen]] += step
            column_price[seen] -= step
            distance[~seen] -= step
            here = nxt
            if owner[here] == 0:
                break
        while here:
            owner[here] = owner[before[here]]
            here = int(before[here])
    found = [0] * rows
    for column in range(1, columns + 1):
        if owner[column]:
            found[owner[column] - 1] = column - 1
    return found
