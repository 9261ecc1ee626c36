"""Interpolative decompositions: some columns of a matrix, and how the others follow from them."""

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
from tensorlrf.decomposition.linalg._output_spectrum import square_root
from tensorlrf.decomposition.linalg._truncation import SEED
from tensorlrf.decomposition.linalg.selection.pivots import Pivots, nearest, sketched, squared_off
from tensorlrf.decomposition.methods import factors_of, for_layers, method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, _share, check_rank_or_error, matrix_rank, whole
from tensorlrf.errors import ArgumentError, UnsupportedError, unknown
from tensorlrf.factors import Skeleton
from tensorlrf.factors.arrays import PLACES

COLUMNS, ROWS = AXES = ("columns", "rows")

SOLVERS = ("auto", "exact", "randomized")

OVERSAMPLING = 8
"""Sums of a sketch beyond the rank."""

LARGE = 1 << 18
"""Entries from which on a sketch is worth while, if it is so many times shorter than the sides."""

SHORTER = 4


@method(
    "interpolative",
    gives=Skeleton,
    on={"tensor", "linear", "conv"},
    order=(30, 30),
    law="the columns taken are reproduced exactly; no error above that of the paper",
    measured="skeletons",
)
def fit_interpolative(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    axis: str | None = None,
    solver: str = "auto",
    gram: Any = None,
    mean: Any = None,
    random_state: int | torch.Generator | None = None,
    measure: bool = True,
) -> Fit[Skeleton]:
    """Some columns or rows of a matrix, exactly, and the others as sums of them.

    A `tensor` of two or more modes is the matrix W (m, n) = (n_0, product of the others). The
    columns J are found by pivots: W is near W[:, J] X, with the identity in the columns J of X,
    which solves the least squares problem, so that no other X serves these columns better. With
    axis="rows" the same of the transpose: W is near Y W[I, :].

    Parameters
    ----------
    tensor : Tensor or array of shape (m, ...)
    rank : int, float or str, optional
        How many; a share of the parameters in (0, 1], the indices counted (an upper bound, down to
        rank one), or "same"; or instead
    error : float, optional
        The smallest rank whose relative error is at most this.
    axis : {"columns", "rows"}, optional
        What is kept: by default columns of a matrix, rows of the weight of a layer, which computes
        the kept outputs as they were and the others from these.
    solver : {"auto", "exact", "randomized"}
        How pivots are found: "exact", by QR with column pivots; "randomized", by that of a few
        random sums of the rows, for a rank; "auto", so where the matrix is large and the rank small
        beside its sides.
    gram : Tensor or array of shape (n, n), optional
        Second moments G = X X^T / N of the inputs of the layer; errors are then those of the
        outputs. Of rows the pivots are those of W G^(1/2), and the coefficients the best estimate
        of the other outputs from those kept: optimal for these rows. Of columns each pivot takes
        most away of what the others leave of W G^(1/2); X needs no G, for the best one is the same
        in all metrics. Which columns or rows are best of all is not known by either.
    mean : Tensor or array of shape (n,), optional
        The mean of the same inputs, with `gram`: the outputs about their mean.
    random_state : int or Generator, optional
        Of the random sums; "auto" repeats where none is given.

    Returns
    -------
    Skeleton
        `columns` W[:, J], `rows` X and `column_indices` J; or `rows` W[I, :], `columns` Y and
        `row_indices` I. Of `fit_interpolative` a `Fit` with the relative error; `converged` is
        False only where `error` was not reached.

    Raises
    ------
    RankError
        For a rank below one or above min(m, n).
    ShapeError, ArgumentError
        For what cannot be decomposed.

    Warns
    -----
    TensorlrfWarning
        Where rounding to the dtype of `tensor` keeps `error` out of reach at every rank.

    Notes
    -----
    With strong pivots the residual is at most sqrt(1 + r (n - r)) times the r + 1st singular value
    in the spectral norm; those of QR come near that in practice, though matrices are known for
    which they do not.

    References
    ----------
    Cheng, Gimbutas, Martinsson & Rokhlin 2005; Liberty, Woolfe, Martinsson, Rokhlin & Tygert 2007;
    Farahat, Ghodsi & Kamel 2013 (columns in a metric).

    Examples
    --------
    >>> w = torch.rand(8, 3) @ torch.rand(3, 6)
    >>> f = tensorlrf.interpolative(w, error=1e-3)
    >>> f.rank, torch.equal(f.columns, w[:, f.column_indices.long()])
    (3, True)
    """
    checked = as_tensor(tensor).detach()
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    check_moments(gram, mean)
    check_options(axis, solver)
    if solver == "randomized":
        if gram is not None:
            raise UnsupportedError(
                "solver='randomized' does not take gram=, in whose metric pivots are those of all "
                "columns; leave solver='auto'"
            )
        if rank is None:
            raise ArgumentError(
                "solver='randomized' needs rank=, a sketch does not see the energy that it leaves "
                "out; for error= use solver='auto'"
            )
    if random_state is None and solver == "auto":
        random_state = SEED
    draws = generator(random_state, checked.device)
    target: Target[Skeleton] = Target.of(checked, gram, mean)
    m, n = target.shape
    r = None if rank is None else interpolative_rank(rank, m, n)
    axis = axis or COLUMNS
    parts = Interpolation(checked, target, axis)
    plain, how = _chosen(parts, solver, r, draws)
    if target.is_plain:

        def cut(r: int) -> Fit[Skeleton]:
            factors = plain(r)
            known = measure or rank is None
            lost = target.error(factors) if known else math.nan
            return Fit(factors, (lost,), True, f"{r} {axis}, {how}")

        pivots = parts.plain_pivots
    else:

        def cut(r: int) -> Fit[Skeleton]:
            def fit() -> Fit[Skeleton]:
                return Fit(parts.served(r), (), True, f"{r} {axis} for the outputs")

            return fit_or_plain(target, lambda: plain(r), fit)

        pivots = parts.pivots
    if r is not None:
        return cut(r)
    bound = max(error or 0.0, torch.finfo(target.work.dtype).eps)
    found = pivots()
    found.extend_within(bound**2 * found.energy)
    return search(cut, None, error, min(m, n), target.dtype, energies=found.energies())


interpolative = factors_of(fit_interpolative)


@for_layers("interpolative", options_of=fit_interpolative)
def _of_layer(tensor: Any, rank: Rank | None = None, **options: Any) -> Skeleton:
    """Rows where axis= is not given. What is lost is lost at the outputs: of inputs with a few
    strong directions rows lose little, while no few columns of the weight span what it makes of
    these."""
    options["axis"] = options.get("axis") or ROWS
    return interpolative(tensor, rank, **options)


@config("interpolative")
class Interpolative(Method):
    """Some rows or columns of the weight and the others as sums of them, as a method of `compress`.

    Convolutions with groups have none.

    Examples
    --------
    >>> print(tensorlrf.Interpolative(axis="columns"))
    interpolative(axis=columns)
    """

    axis: str | None
    solver: str

    in_metric = ("axis",)

    def check_options(self) -> None:
        check_options(self.axis, self.solver)

    def params_at(self, rank: Any, shape: tuple[int, ...]) -> int:
        return int(rank * (shape[0] + math.prod(shape[1:]) + 1))

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        return apart(groups)

    def finds_rank(self, data_aware: bool) -> bool:
        return True

    def fresh_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> Skeleton:
        m, n = shape[0], math.prod(shape[1:])
        r = interpolative_rank(rank, m, n)
        return Skeleton(values(m, r), None, values(r, n), dense_shape=shape)


def apart(groups: int) -> str:
    """Why the groups of a convolution cannot have the format; empty where there is one."""
    return "its groups would each pick columns and rows of their own" if groups > 1 else ""


def check_options(axis: Any, solver: Any) -> None:
    """Raise ArgumentError for words that are none."""
    if axis is not None and axis not in AXES:
        raise unknown("axis", axis, AXES)
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)


def interpolative_rank(rank: Rank, m: int, n: int) -> int:
    """How many columns or rows: a share counts r (m + n + 1) numbers."""
    share = _share(rank)
    if share is None:
        return matrix_rank(rank, m, n)
    return max(1, min(m, n, whole(share * m * n / (m + n + 1))))


def _chosen(
    parts: Interpolation, solver: str, r: int | None, draws: torch.Generator
) -> tuple[Callable[[int], Skeleton], str]:
    """The plain factors of a rank, by the solver that serves, and how that goes."""
    short = False
    if r is not None and solver != "exact":
        m, n = parts.target.shape
        short = solver == "randomized" or (
            m * n >= LARGE and SHORTER * (r + OVERSAMPLING) <= min(m, n)
        )
    if short:
        return lambda r: parts.by_sketch(r, draws), "solver 'randomized'"
    return parts.plain, "solver 'exact'"


class Interpolation:
    """The columns of a weight, or its rows as columns of the transpose, on the way to factors."""

    def __init__(self, tensor: Tensor, target: Target[Skeleton], axis: str) -> None:
        self.tensor, self.target, self.by_rows = tensor, target, axis == ROWS
        self._plain: Pivots | None = None

    @property
    def work(self) -> Tensor:
        """What columns are picked of, in the working dtype."""
        return self.target.work.T if self.by_rows else self.target.work

    def plain_pivots(self) -> Pivots:
        """Of the weight as it is."""
        if self._plain is None:
            self._plain = Pivots(squared_off(self.work), rounding=self._rounding)
        return self._plain

    def pivots(self) -> Pivots:
        """In the metric of the inputs."""
        return self._served

    @cached_property
    def _served(self) -> Pivots:
        gram = self.target.gram
        assert gram is not None
        root = square_root(gram)
        if self.by_rows:
            turned = (self.target.matrix @ root).T
            return Pivots(squared_off(turned), rounding=self._rounding)
        matrix = squared_off(self.target.matrix)
        return Pivots(matrix, matrix @ root, rounding=self._rounding)

    @property
    def _rounding(self) -> float:
        return float(torch.finfo(self.target.dtype).eps) / 8

    def plain(self, r: int) -> Skeleton:
        """By the pivots of all columns."""
        return self._of(self.plain_pivots(), r)

    def served(self, r: int) -> Skeleton:
        """By those in the metric."""
        return self._of(self.pivots(), r)

    def by_sketch(self, r: int, draws: torch.Generator) -> Skeleton:
        """By the pivots of random sums."""
        work = self.work
        eps = float(torch.finfo(work.dtype).eps)
        sums = Pivots(sketched(work, r, OVERSAMPLING, draws), rounding=eps)
        order = sums.order(r)
        return self._factors(order, nearest(work, order, min(r, len(sums.chosen))))

    def _of(self, pivots: Pivots, r: int) -> Skeleton:
        return self._factors(pivots.order(r), pivots.coefficients(r))

    def _factors(self, order: Tensor, coefficients: Tensor) -> Skeleton:
        """The picked ones are those of the tensor, bit for bit."""
        given = self.tensor.reshape(self.target.shape)
        found = coefficients.to(given.dtype)
        indices, shape = order.to(PLACES), tuple(self.tensor.shape)
        if self.by_rows:
            kept = given[order].contiguous()
            return Skeleton(
                found.T.contiguous(), None, kept, row_indices=indices, dense_shape=shape
            )
        kept = given[:, order].contiguous()
        return Skeleton(kept, None, found, column_indices=indices, dense_shape=shape)
