"""CUR: columns and rows of a matrix, and the core that joins them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._options import check_moments
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.config import Method, config
from tensorlrf.decomposition.linalg._output_spectrum import OutputSpectrum, square_root
from tensorlrf.decomposition.linalg._spectrum import whole_spectrum
from tensorlrf.decomposition.linalg._truncation import POWER_STEPS, SEED, SVDSolver
from tensorlrf.decomposition.linalg.selection.maxvol import maxvol
from tensorlrf.decomposition.linalg.selection.pivots import Pivots, facing, sketched, squared_off
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import (
    Rank,
    _share,
    check_rank_or_error,
    ints,
    matrix_rank,
    plain,
    whole,
)
from tensorlrf.decomposition.skeleton._core import best_core, pseudo_inverse
from tensorlrf.decomposition.skeleton._interpolative import (
    LARGE,
    OVERSAMPLING,
    SHORTER,
    apart,
)
from tensorlrf.errors import RankError, UnsupportedError, unknown
from tensorlrf.factors import Skeleton
from tensorlrf.factors.arrays import PLACES

SAMPLINGS = ("pivots", "deim", "leverage", "cross")

ROUNDS = 4
"""Most times that rows are chosen anew for the columns, and columns for the rows, in a cross."""


@method(
    "cur",
    gives=Skeleton,
    on={"tensor", "linear", "conv"},
    order=(31, 31),
    law="the core is the best for its columns and rows; crosses reproduce them",
    measured="skeletons",
)
def fit_cur(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    sampling: str = "pivots",
    gram: Any = None,
    mean: Any = None,
    random_state: int | torch.Generator | None = None,
    measure: bool = True,
) -> Fit[Skeleton]:
    """Columns and rows of a matrix, and the core that joins them.

    A `tensor` of two or more modes is the matrix W (m, n) = (n_0, product of the others). With
    C = W[:, J] and R = W[I, :] it is near C U R.

    Parameters
    ----------
    tensor : Tensor or array of shape (m, ...)
    rank : int, tuple, float or str, optional
        How many columns and how many rows, or (columns, rows) with "pivots"; a share of the
        parameters in (0, 1], the core and the indices counted (an upper bound, down to rank one),
        or "same"; or instead
    error : float, optional
        A rank whose relative error is at most this, where one less, or less by as much as the ranks
        tried lay apart, was not enough.
    sampling : {"pivots", "deim", "leverage", "cross"}
        How columns and rows are chosen. "pivots": the columns as those of an `interpolative`
        decomposition, by QR or by a sketch, and then rows that span best what these columns have of
        the matrix. "deim": one after the other by the leading singular
        vectors, each where interpolation at those before it is worst. "leverage": drawn by their
        shares in these vectors, without replacement. These three have the core that fits
        best, U = C^+ W R^+. "cross": a part W[I, J] of nearly the largest volume, and U its
        inverse, so that the columns and rows are reproduced.
    gram : Tensor or array of shape (n, n), optional
        Second moments of the inputs of the layer; errors are then those of the outputs, the
        singular vectors those of the best fit to them, and U the best core in that metric. Not of a
        cross, which interpolates entries.
    mean : Tensor or array of shape (n,), optional
        The mean of the same inputs, with `gram`: the outputs about their mean.
    random_state : int or Generator, optional
        Of "leverage"; the others repeat.

    Returns
    -------
    Skeleton
        `columns`, `core` and `rows`, with the indices of both. Of a tensor whose entries are near
        the ends of its dtype columns and rows are divided by a power of two. Of `fit_cur` a `Fit`
        with the relative error.

    Raises
    ------
    RankError
        For a rank below one or above min(m, n), and for other numbers of rows than of columns but
        with "pivots".
    ShapeError, ArgumentError
        For what cannot be decomposed.
    UnsupportedError
        For `gram` with sampling="cross".

    Warns
    -----
    TensorlrfWarning
        Where rounding to the dtype of `tensor` keeps `error` out of reach at every rank.

    Notes
    -----
    What columns lose and what rows lose of these add up as squares: with as many of both by pivots
    up to sqrt(2) times the error of the columns alone is seen; with more rows, which cost little in
    a matrix taller than wide, it is nearer to that. By DEIM the residual is at most (1/s(V[J]) +
    1/s(U[I])) times the r + 1st singular value, in the spectral norm, with s the least singular
    value of the rows I and J of the singular vectors (Sorensen & Embree, theorem 4.1). A cross of
    the largest volume has no entry off by more than r + 1 times that value. The core undoes
    singular values of columns and rows: those below the root of the rounding of the dtype are left
    out, and errors below that are not reached; an `interpolative` decomposition has no such floor.

    References
    ----------
    Mahoney & Drineas 2009; Sorensen & Embree 2016; Goreinov, Tyrtyshnikov & Zamarashkin 1997.

    Examples
    --------
    >>> w = torch.rand(8, 3) @ torch.rand(3, 6)
    >>> f = tensorlrf.cur(w, 3)
    >>> f.rel_error(w) < 1e-4, torch.equal(f.rows, w[f.row_indices.long()])
    (True, True)
    """
    checked = as_tensor(tensor).detach()
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    check_moments(gram, mean)
    if sampling not in SAMPLINGS:
        raise unknown("sampling", sampling, SAMPLINGS)
    if sampling == "cross" and gram is not None:
        raise UnsupportedError(
            "gram= does not go with sampling='cross', which interpolates entries in no metric; use "
            "sampling='deim'"
        )
    if random_state is None and sampling != "leverage":
        random_state = SEED
    target: Target[Skeleton] = Target.of(checked, gram, mean)
    m, n = target.shape
    r, p = (None, None) if rank is None else cur_rank(rank, m, n)
    if p != r and sampling != "pivots":
        raise RankError(
            f"rank={rank} has other numbers of rows than of columns, which sampling={sampling!r} "
            "has not; give one int, or sampling='pivots'"
        )
    cuts = Cuts(target, sampling, r, generator(random_state, checked.device), checked)

    def cut(r: int) -> Fit[Skeleton]:
        many = f"{r} columns and rows" if p in (None, r) else f"{r} columns and {p} rows"
        if target.is_plain:
            factors = cuts.plain(r, p or r)
            known = measure or rank is None
            lost = target.error(factors) if known else math.nan
            return Fit(factors, (lost,), True, f"{many} by {sampling}")

        def served() -> Fit[Skeleton]:
            return Fit(cuts.served(r, p or r), (), True, f"{many} by {sampling}")

        return fit_or_plain(target, lambda: cuts.plain(r, p or r), served)

    return search(cut, r, error, min(m, n), target.dtype)


cur = factors_of(fit_cur)


@config("cur")
class CUR(Method):
    """Columns and rows of the weight and a core between them, as a method of `compress`.

    Convolutions with groups have none.

    Examples
    --------
    >>> print(tensorlrf.CUR(sampling="leverage"))
    cur(sampling=leverage)
    """

    sampling: str

    def check_options(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise unknown("sampling", self.sampling, SAMPLINGS)

    @property
    def fits_inputs(self) -> bool:
        return self.sampling != "cross"

    def params_at(self, rank: Any, shape: tuple[int, ...]) -> int:
        m, n = shape[0], math.prod(shape[1:])
        columns, rows = cur_rank(rank, m, n)
        return columns * (m + 1) + rows * (n + 1) + columns * rows

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        return apart(groups)

    def fresh_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> Skeleton:
        m, n = shape[0], math.prod(shape[1:])
        r, p = cur_rank(rank, m, n)
        return Skeleton(values(m, r), values(r, p), values(p, n), dense_shape=shape)


def cur_rank(rank: Rank, m: int, n: int) -> tuple[int, int]:
    """How many columns and rows: a share counts r (m + n + r + 2) numbers."""
    rank = plain(rank, "rank")
    if isinstance(rank, (tuple, list)) and len(rank) == 2:
        columns, rows = ints(rank)
        if columns > n or rows > m:
            raise RankError(f"rank={tuple(rank)} is above the {n} columns and {m} rows that are")
        return columns, rows
    share = _share(rank)
    if share is None:
        r = matrix_rank(rank, m, n)
    else:
        half = (m + n + 2) / 2
        r = max(1, min(m, n, whole(math.sqrt(half**2 + share * m * n) - half)))
    return r, r


class Cuts:
    """A weight, to be told by its columns and rows at any rank.

    most  the rank, where it is known: then no more singular vectors are sought
    """

    def __init__(
        self,
        target: Target[Skeleton],
        sampling: str,
        most: int | None,
        draws: torch.Generator,
        tensor: Tensor,
    ) -> None:
        self.target, self.sampling, self.most, self.draws = target, sampling, most, draws
        self.tensor = tensor

    def plain(self, r: int, p: int) -> Skeleton:
        """Of r columns and p rows, in the plain norm."""
        if self.sampling == "pivots":
            columns = self._columns(r)
            rows = self._facing(columns, self.target.work.to(torch.float64), p)
        elif self.sampling == "cross":
            rows, columns = self._cross(r)
        else:
            rows, columns = self._picked(*self._spectrum.split(r))
        return self._joined(rows, columns, None)

    def served(self, r: int, p: int) -> Skeleton:
        """In the metric of the inputs."""
        if self.sampling == "pivots":
            columns = self._output_pivots.order(r)
            rows = self._facing(columns, self._image, p)
        else:
            rows, columns = self._picked(*self._outputs.split(r))
        return self._joined(rows, columns, self._root)

    # ---- which columns and rows --------------------------------------------------------------

    @cached_property
    def _spectrum(self) -> Any:
        work = self.target.work
        if self.most is None:
            return whole_spectrum(work)
        draws = generator(SEED, work.device)
        solver = SVDSolver("auto", POWER_STEPS, OVERSAMPLING, draws)
        return solver.spectrum(work, self.most)[0]

    @cached_property
    def _outputs(self) -> OutputSpectrum:
        return OutputSpectrum(self.target, self.target.work)

    @cached_property
    def _root(self) -> Tensor:
        """L with G = L L^T."""
        gram = self.target.gram
        assert gram is not None
        return square_root(gram)

    @cached_property
    def _image(self) -> Tensor:
        """W L."""
        image: Tensor = self.target.matrix @ self._root
        return image

    @cached_property
    def _pivots(self) -> Pivots:
        return Pivots(squared_off(self.target.work), rounding=self._rounding)

    @cached_property
    def _output_pivots(self) -> Pivots:
        matrix = squared_off(self.target.matrix)
        return Pivots(matrix, matrix @ self._root, rounding=self._rounding)

    @property
    def _rounding(self) -> float:
        return float(torch.finfo(self.target.dtype).eps) / 8

    def _columns(self, r: int, more: int = 2) -> Tensor:
        """By pivots, of `more` r random sums of rows where the matrix is large and r small."""
        work = self.target.work
        m, n = work.shape
        if m * n < LARGE or SHORTER * (r + OVERSAMPLING) > min(m, n) or self.most is None:
            return self._pivots.order(r)
        sums = sketched(work, more * r, OVERSAMPLING, self.draws)
        return Pivots(sums, rounding=self._rounding).order(r)

    def _facing(self, columns: Tensor, image: Tensor, count: int) -> Tensor:
        return facing(image, orthonormal(self.target.work[:, columns]), count)

    def _picked(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns by the sides of the best fit of their number, (m, r) and (r, n)."""
        pick = self._by_leverage if self.sampling == "leverage" else by_deim
        found = [pick(orthonormal(side)) for side in (left, right.T)]
        return found[0], found[1]

    def _by_leverage(self, basis: Tensor) -> Tensor:
        """As many of n rows of an orthonormal basis (n, r) as it has columns."""
        scores = basis.square().sum(1)
        # Those without any share come last, when all others are drawn.
        least = float(torch.finfo(scores.dtype).tiny) * 2**16
        return scores.clamp(min=least).multinomial(basis.shape[1], generator=self.draws)

    def _cross(self, r: int) -> tuple[Tensor, Tensor]:
        """Rows and columns that meet in a part of nearly the largest volume: each in turn for the
        other, from columns by pivots on."""
        work = self.target.work
        columns = self._columns(r, 1)
        rows = columns[:0]
        for _ in range(ROUNDS):
            before = rows
            rows = maxvol(orthonormal(work[:, columns]))[0]
            if len(before) and torch.equal(before.sort().values, rows.sort().values):
                break
            columns = maxvol(orthonormal(work[rows].T))[0]
        return rows, columns

    # ---- the core ----------------------------------------------------------------------------

    def _joined(self, rows: Tensor, columns: Tensor, root: Tensor | None) -> Skeleton:
        """The core that is best in the metric L L^T of `root`, or that of a cross."""
        target = self.target
        work, cut = target.work, float(torch.finfo(target.dtype).eps) ** 0.5
        if self.sampling == "cross":
            core = pseudo_inverse(work[rows][:, columns].to(torch.float64), cut)
        else:
            core = best_core(work, rows, columns, root, cut)
        given = self.tensor.reshape(target.shape)
        if target.scale != 1.0:
            given = (work * target.root).to(given.dtype)
        return Skeleton(
            given[:, columns].contiguous(),
            core.to(given.dtype),
            given[rows].contiguous(),
            columns.to(PLACES),
            rows.to(PLACES),
            tuple(self.tensor.shape),
        )


def by_deim(basis: Tensor) -> Tensor:
    """Rows of an orthonormal basis (n, r), one a column, each where the next column is farthest
    from what interpolates it in the rows so far: those of an LU factorisation with partial pivots
    (Sorensen & Embree 2016, section 3)."""
    exchanges = torch.linalg.lu_factor(basis)[1]
    order = list(range(len(basis)))
    for k, other in enumerate(exchanges.tolist()):
        order[k], order[other - 1] = order[other - 1], order[k]
    return torch.tensor(order[: basis.shape[1]], device=basis.device)


def orthonormal(side: Tensor) -> Tensor:
    """A basis of its columns, in float64: Householder's Q is one whatever it factors."""
    basis: Tensor = torch.linalg.qr(side.to(torch.float64))[0]
    return basis
