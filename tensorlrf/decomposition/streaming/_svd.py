"""A truncated SVD of rows that come piece by piece."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import as_tensor, working_dtype
from tensorlrf.decomposition.linalg._gram import keep_within, left_singular
from tensorlrf.decomposition.linalg.threads import entries, problem
from tensorlrf.decomposition.rank import check_rank_or_error, plain
from tensorlrf.decomposition.streaming._rows import GrowingRows, check_alike
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import LowRank
from tensorlrf.factors.autocast import without_autocast


class IncrementalSVD:
    """The truncated SVD of a matrix whose rows come piece by piece, none of which is kept.

    What is held are the singular values and right vectors so far (r, n), and the left vectors of
    all rows. Each update takes the SVD of these upon the new rows, (r + m, n), and truncates it.
    What an update leaves out is orthogonal to all that was left out before, so the squared errors
    add up and the error of the whole is known at any time, to rounding.

    Parameters
    ----------
    rank : int, optional
        Singular values to hold; or instead
    error : float, optional
        Relative error that the whole stays within after every update.

    Attributes
    ----------
    bound : float
        Frobenius norm of the rows so far less `factors`.
    rel_error : float
        The same over the norm of the rows so far.
    n_rows : int
        Rows so far.

    Raises
    ------
    ArgumentError, RankError
        For a rank or an error that cannot be.

    Notes
    -----
    With `rank` the error after u updates is at most sqrt(u) times that of the best approximation of
    the same rank: what an update is given is U^T of the rows before, with orthonormal U, upon the
    new ones, whose singular values are none above those of the rows themselves, and the squares of
    what updates leave out add up. (For merged SVDs in general Iwen & Ong 2016 have (1 + sqrt 2)^(u
    + 1) - 1.)

    References
    ----------
    Brand 2002; Iwen & Ong 2016.

    Examples
    --------
    >>> stream = tensorlrf.IncrementalSVD(rank=3)
    >>> for rows in torch.rand(100, 8).split(20):
    ...     stream.update(rows)
    >>> stream.factors.shape, stream.n_rows, stream.rel_error < 0.5
    ((100, 8), 100, True)
    """

    def __init__(self, rank: int | None = None, *, error: float | None = None) -> None:
        rank, error = check_rank_or_error(rank, error)  # type: ignore[assignment]  # an int, below
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise RankError(f"rank={rank!r} must be an int of at least 1")
        self._rank: int | None = rank
        self._error: float | None = plain(error, "error")
        self._dtype: torch.dtype | None = None
        self._rows = GrowingRows()
        self._kept: Tensor | None = None  # singular values times right vectors, (r, n)
        self._lost = self._whole = 0.0  # squared
        self.n_rows = 0

    @without_autocast()
    def update(self, rows: Any) -> None:
        """Take more rows.

        Parameters
        ----------
        rows : Tensor or array of shape (m, n)
            Of the width, dtype and device of those before.

        Raises
        ------
        ShapeError
            For another width.
        ArgumentError
            For another dtype or device, and what cannot be decomposed. Nothing is changed then.
        """
        given = as_tensor(rows, "rows").detach()
        self._check(given)
        with problem(entries((given,))):
            work = given.to(working_dtype(given.dtype))
            before = 0 if self._kept is None else self._kept.shape[0]
            stack = work if self._kept is None else torch.cat([self._kept, work])
            vectors, energies = left_singular(stack, self._rank)
            self._whole += float(torch.linalg.vector_norm(work, dtype=torch.float64)) ** 2
            r = self._choose(energies)
            turn = vectors[:, :r]
            self._lost += float(energies[r:].sum())
            self._kept = turn.T @ stack
            self._rows.take(turn, before)
        self._dtype = given.dtype
        self.n_rows += int(given.shape[0])
        vars(self).pop("factors", None)

    def _choose(self, energies: Tensor) -> int:
        seen = int((energies > energies[0] * torch.finfo(torch.float64).eps ** 2).sum())
        if self._rank is not None:
            return max(1, min(self._rank, seen))
        budget = (self._error or 0.0) ** 2 * self._whole - self._lost
        return max(1, min(seen, keep_within(max(budget, 0.0))(energies)))

    def _check(self, rows: Tensor) -> None:
        if rows.ndim != 2:
            raise ShapeError(f"rows has shape {tuple(rows.shape)}; it must be (m, n)")
        if self._kept is None:
            most = int(rows.shape[1])
            if self._rank is not None and self._rank > most:
                raise RankError(
                    f"rank={self._rank} is above {most}, the width of rows; use at most {most}"
                )
            return
        if rows.shape[1] != self._kept.shape[1]:
            raise ShapeError(
                f"rows has shape {tuple(rows.shape)}, those before have {self._kept.shape[1]} "
                "columns; all updates have one width"
            )
        check_alike("rows", rows, self._dtype, self._kept.device)

    @property
    def bound(self) -> float:
        """Frobenius norm of the rows so far less `factors`, but for rounding."""
        return math.sqrt(self._lost)

    @property
    def rel_error(self) -> float:
        """The same over the norm of the rows so far; 0 before the first and for zeros."""
        return math.sqrt(self._lost / self._whole) if self._whole > 0 else 0.0

    @cached_property
    def factors(self) -> LowRank:
        """Of all rows so far (n_rows, n): left has orthonormal columns, right the singular values.

        Raises
        ------
        ArgumentError
            Before the first update.
        """
        if self._kept is None or self._dtype is None:
            raise ArgumentError("there are no rows yet; call update(rows) first")
        left = self._rows.whole()
        return LowRank(left.to(self._dtype), self._kept.to(self._dtype))

    @property
    def singular_values(self) -> Tensor:
        """(r,), descending, in float64."""
        if self._kept is None:
            raise ArgumentError("there are no rows yet; call update(rows) first")
        values: Tensor = torch.linalg.vector_norm(self._kept, dim=1, dtype=torch.float64)
        return values
