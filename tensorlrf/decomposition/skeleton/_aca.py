"""Adaptive cross approximation: a matrix from a few of its rows and columns, the rest unseen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._options import check_count
from tensorlrf.decomposition.linalg.selection.values import Function, Values, checked_shape, drawn
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.decomposition.methods import factors_of
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, _share, check_rank_or_error, matrix_rank, whole
from tensorlrf.errors import ShapeError
from tensorlrf.factors import Skeleton
from tensorlrf.factors.arrays import PLACES
from tensorlrf.factors.autocast import without_autocast

NUMERICAL = 1e-14
"""A pivot below this share of the largest is rounding."""

EMPTY = 4
"""Rows in which nothing is left, one after the other, at which it is asked whether anything is."""


@without_autocast()
@threaded
@without_autocast()
def fit_aca(
    function: Function,
    shape: Sequence[int],
    rank: Rank | None = None,
    *,
    error: float | None = None,
    n_samples: int = 1000,
    random_state: int | torch.Generator | None = None,
) -> Fit[Skeleton]:
    """A matrix W[i, j] = function(i, j) by crosses of rows and columns, never formed.

    A row is evaluated, less what is known of it; where the rest is largest a column is; where the
    rest of that is largest, the next row. Each cross costs m + n values.

    Parameters
    ----------
    function : callable
        From indices, an int64 tensor (M, 2) on the CPU, to finite values, floating point, (M,); the
        factors have their dtype and device.
    shape : (m, n)
    rank : int, float or str, optional
        The most crosses: fewer where the matrix has a lower rank. A share of the parameters in (0,
        1], the indices counted (an upper bound, down to rank one), or "same"; or instead
    error : float, optional
        Relative error to stay within, by the estimate.
    n_samples : int
        Entries drawn for each estimate of the relative error.
    random_state : int or Generator, optional

    Returns
    -------
    Skeleton
        `rows` W[I, :] and coefficients `columns`, the identity in the rows I, with the indices of
        the rows and of the columns J. Both are reproduced. Of `fit_aca` a `Fit` with the estimated
        errors: after each cross by the size of the last one, and at last over entries drawn. With
        `error=`, `converged` is False where that did not come within it. `reason` says how many
        values of the function were taken.

    Raises
    ------
    ArgumentError, ShapeError
        Where the function returns what is not finite, not floating point or not (M,), with the
        first index.
    RankError
        For a rank below one or above min(m, n).

    Notes
    -----
    Nothing is certain here: where the function was not evaluated it may differ. What the last cross
    adds is asked first, as in the paper; before it is believed, entries drawn uniformly are asked,
    and where one of them is worst the next row is taken. That finds parts that crosses alone pass
    by, unless they have fewer than about one in `n_samples` entries.

    References
    ----------
    Bebendorf 2000; Bebendorf & Rjasanow 2003.

    Examples
    --------
    >>> def function(i):
    ...     return 1.0 / (1.0 + i.sum(1).double())
    >>> f = tensorlrf.aca(function, (300, 200), error=1e-8, random_state=0)
    >>> f.rank < 20, abs(f.to_dense()[3, 4].item() - 1 / 8) < 1e-7
    (True, True)
    """
    rank, error = check_rank_or_error(rank, error)
    sizes = checked_shape(shape)
    if len(sizes) != 2:
        raise ShapeError(f"shape={sizes} must be two sizes (m, n); tt_cross serves more of them")
    check_count("n_samples", n_samples, 1)
    draws = generator(random_state, torch.device("cpu"))
    values = Values(function, "cur")
    m, n = sizes
    most = min(sizes) if rank is None else _crosses(rank, m, n)
    cross = Crosses(values, (m, n), draws)
    bound, errors = error or 0.0, []
    row: int | None = int(drawn((m,), 1, draws))
    empty = 0
    while cross.rank < most and row is not None:
        size = cross.add(row)
        empty = empty + 1 if size == 0.0 else 0
        if size > 0.0:
            errors.append(size)
        if empty >= EMPTY or 0.0 < size <= bound:
            estimate, worst = cross.estimate(n_samples)
            if estimate <= max(bound, NUMERICAL):
                break
            row = int(worst[0])
            empty = 0
            if row in cross.tried:
                row = cross.untried()
        else:
            row = cross.next_row() if size > 0.0 else cross.untried()
    factors = cross.factors()
    check_rank_or_error(rank, error, factors.dtype)  # known only from the function's values
    errors.append(cross.estimate(n_samples)[0])
    share = values.count / (m * n)
    reason = (
        f"{cross.rank} crosses, {values.count:,} values of the function ({share:.2g} of the "
        f"whole), error estimated on {n_samples} entries"
    )
    return Fit(factors, tuple(errors), error is None or errors[-1] <= bound, reason)


aca = factors_of(fit_aca)


class Crosses:
    """What is known of a matrix by its crosses: W is near U V, in float64 on the CPU."""

    def __init__(self, values: Values, sizes: tuple[int, int], draws: torch.Generator) -> None:
        self.values, self.sizes, self.draws = values, sizes, draws
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.tried: set[int] = set()
        self._left = values.like.new_zeros(sizes[0], 0)  # U
        self._right = values.like.new_zeros(0, sizes[1])  # V
        self._exact = values.like.new_zeros(0, sizes[1])  # W[I]
        self._square = 0.0
        self._largest = 0.0

    @property
    def rank(self) -> int:
        return len(self.rows)

    def add(self, row: int) -> float:
        """The cross at the largest entry that is left in that row; how large it is beside the whole
        so far, and 0 where nothing is left there."""
        m, n = self.sizes
        self.tried.add(row)
        exact = self.values(_line(row, n, 0))
        rest = exact - self._left[row] @ self._right
        rest[self.columns] = 0.0
        column = int(rest.abs().argmax())
        pivot = float(rest[column])
        self._largest = max(self._largest, float(exact.abs().max()))
        if not abs(pivot) > NUMERICAL * self._largest:
            return 0.0
        left = self.values(_line(column, m, 1)) - self._left @ self._right[:, column]
        left[self.rows] = 0.0
        right = rest / pivot
        size = float(left.square().sum() * right.square().sum())
        self._square += size + 2 * float(((self._left.T @ left) * (self._right @ right)).sum())
        self._left = torch.cat([self._left, left[:, None]], 1)
        self._right = torch.cat([self._right, right[None]])
        self._exact = torch.cat([self._exact, exact[None]])
        self.rows.append(row)
        self.columns.append(column)
        return math.sqrt(size / max(self._square, size * 1e-300))

    def next_row(self) -> int | None:
        """Where the rest of the last column is largest, of those not tried; None of none."""
        sizes = self._left[:, -1].abs()
        sizes[list(self.tried)] = -1.0
        return int(sizes.argmax()) if len(self.tried) < self.sizes[0] else None

    def untried(self) -> int | None:
        """A row that was not, drawn; None where all were."""
        left = [i for i in range(self.sizes[0]) if i not in self.tried]
        return left[int(drawn((len(left),), 1, self.draws))] if left else None

    def estimate(self, count: int) -> tuple[float, Tensor]:
        """The relative error over so many entries, and the index where it is worst."""

        def entries(indices: Tensor) -> Tensor:
            return (self._left[indices[:, 0]] * self._right[:, indices[:, 1]].T).sum(1)

        return self.values.estimate(entries, drawn(self.sizes, count, self.draws))

    def factors(self) -> Skeleton:
        """Rows as they were evaluated, and all others by those: U U[I]^-1."""
        if not self.rows:  # a matrix of zeros has a row of them
            self.add_zero()
        square = self._left[self.rows]  # (r, r), lower triangular
        weights = torch.linalg.solve_triangular(square, self._left, upper=False, left=False)
        like = self.values.like
        weights[self.rows] = torch.eye(self.rank, dtype=weights.dtype, device="cpu")
        columns, rows = (
            torch.tensor(one, dtype=PLACES, device=like.device) for one in (self.columns, self.rows)
        )
        return Skeleton(weights.to(like), None, self._exact.to(like), columns, rows)

    def add_zero(self) -> None:
        """A cross of zeros, with one where they meet in U."""
        m, n = self.sizes
        self._left = self._left.new_zeros(m, 1)
        self._left[0] = 1.0
        self._right, self._exact = self._right.new_zeros(1, n), self._exact.new_zeros(1, n)
        self.rows, self.columns = [0], [0]


def _line(at: int, count: int, axis: int) -> Tensor:
    """Indices (count, 2) of a row (axis 0) or a column (1)."""
    indices = torch.full((count, 2), at, dtype=torch.int64, device="cpu")
    indices[:, 1 - axis] = torch.arange(count, device="cpu")
    return indices


def _crosses(rank: Any, m: int, n: int) -> int:
    """How many: a share counts r (m + n + 2) numbers."""
    share = _share(rank)
    if share is None:
        return matrix_rank(rank, m, n)
    return max(1, min(m, n, whole(share * m * n / (m + n + 2))))
