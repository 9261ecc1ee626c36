"""SVD of a matrix that does not fit into memory, or lies with several ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._search import search
from tensorlrf.decomposition.large._divided import Reading, divided
from tensorlrf.decomposition.large._entered import entered
from tensorlrf.decomposition.large._fit import LargeFit
from tensorlrf.decomposition.large._look import look
from tensorlrf.decomposition.large._memory import Need, check_room, rows_within
from tensorlrf.decomposition.large._residual import rel_error, residual_bytes
from tensorlrf.decomposition.large._sides import WholeSide, divided_svd
from tensorlrf.decomposition.linalg._gram import thin_svd
from tensorlrf.decomposition.linalg._rangefinder import check_sketch
from tensorlrf.decomposition.methods import factors_of
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, matrix_rank
from tensorlrf.errors import ArgumentError, unknown
from tensorlrf.factors import LowRank

SOLVERS = ("auto", "gram", "randomized")

POWER_STEPS = 2
"""By default: each is a pass."""

_BLOCK = 1 << 19  # entries that are raised to float64 at once
_ROWS = 64  # of a block, where it can have as many

# Singular values of a sketch below this share of the largest are rounding.
_NOISE = 1e-11


@entered
def fit_svd(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    solver: str = "auto",
    n_power_iter: int = 2,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    along: int | None = None,
    memory_limit: int | str | None = None,
    measure: bool = True,
) -> LargeFit[LowRank]:
    """The nearest matrix of rank r to a matrix that is read in slabs, or sharded over ranks.

    A tensor of more than two modes is the matrix (n_0, product of the others), as in
    `tensorlrf.svd`; so are the sides of the result.

    Parameters
    ----------
    tensor : Slabs, Sharded, DTensor, path, array or slice
        See `Slabs` and `Sharded`.
    rank : int, float or str, optional
        As of `tensorlrf.svd`, but for "auto"; or instead
    error : float, optional
        The smallest rank whose relative error is at most this; by "gram".
    solver : str
        "gram": eigenvectors of the Gram of the side that every slab has whole, n_0 where slabs are
        cut along another mode, else the product of the others; in float64 (for float64 the R factor
        of a QR). The best approximation there is. "randomized": a sketch with power iterations, in
        which a piece is multiplied by the sketch and, while it is there, its transpose by the
        product. "auto": "gram" for `error` and where that side is so short that it takes less.
    n_power_iter, n_oversample : int
        Of "randomized".
    random_state : int or Generator, optional
        One for all ranks; None draws one.
    along : int, optional
        See `Slabs`.
    memory_limit : int or str, optional
        See `Slabs`; "1GB" by default. There has to be room for the sides, and some of their size.

    Returns
    -------
    LowRank
        Whole, on every rank. Of `fit_svd` a `LargeFit` with the true error.

    Raises
    ------
    ArgumentError, ShapeError, RankError
        As `tensorlrf.svd`; for a limit below what is needed, which is named, and for ranks that do
        not make the same call.

    Notes
    -----
    Passes: the first look; by "gram" two; by "randomized" one for each power iteration and one more
    (for float64 two more); and one for the error, which `svd` leaves out. So n_power_iter=0 reads
    the data once after the look. With p ranks, w the length of the whole side and s = r +
    n_oversample, a rank sends 2 (p - 1) / p 8 w s bytes for each of these passes by a sketch, by
    Gram 2 (p - 1) / p 8 w^2; (p - 1) 8 s^2 for the sketch's QR, and what the sides of the result
    have, to gather them.

    References
    ----------
    Halko, Martinsson & Tropp 2011, sections 4.5 and 5.5 (one pass of a matrix for both products).

    Examples
    --------
    >>> import numpy
    >>> w = numpy.random.rand(300, 4) @ numpy.random.rand(4, 200)
    >>> f = tensorlrf.large.svd(w, 4, memory_limit="200MB", random_state=0)
    >>> f.rel_error(w) < 1e-10
    True
    """
    whole = divided(tensor, along, memory_limit)
    reading = Reading(whole)
    reading.agree(
        "svd", rank=rank, error=error, solver=solver, n_power_iter=n_power_iter,
        n_oversample=n_oversample, random_state=random_state, measure=measure,
    )  # fmt: skip
    rank, error = check_rank_or_error(rank, error, whole.dtype)
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    check_sketch(n_power_iter, n_oversample)
    shape = whole.shape
    m, n = shape[0], math.prod(shape[1:])
    r = None if rank is None else matrix_rank(rank, m, n)
    rng = reading.generator(random_state)
    matrix = Matrix.of(reading)
    width = min(m, n, (r or 1) + n_oversample)
    chosen = _solver(matrix, solver, r, width, n_power_iter)

    def rows_now() -> int:
        need = matrix.of_gram(r or 1) if chosen == "gram" else matrix.of_sketch(r or 1, width)
        return matrix.rows(f"svd by {chosen!r}", need)

    reading.together(rows_now)
    norm = look(reading)
    rows = reading.together(rows_now)
    found: Spectrum
    if chosen == "gram":
        found = by_gram(matrix, rows)
    else:
        found = by_sketch(matrix, rows, width, n_power_iter, rng)

    def cut(r: int) -> LargeFit[LowRank]:
        left, values, right = found.triples(matrix, rows, r)
        factors = _as_factors(matrix, left, values, right)
        known = measure or rank is None
        loss = _true_error(matrix, rows, factors, norm) if known else math.nan
        return LargeFit(factors, (loss,), True, f"rank {r}, solver {chosen!r}")

    if r is not None:
        fit = cut(r)
    else:
        fit = search(cut, None, error, len(found.energies), whole.dtype, energies=found.energies)  # type: ignore[assignment]  # of what `cut` gives, `replace` makes the same
    return LargeFit(
        fit.factors,
        fit.errors,
        fit.converged,
        fit.reason,
        passes=reading.passes,
        bytes_sent=reading.group.bytes_sent,
    )


svd = factors_of(fit_svd)


@dataclass(frozen=True)
class Matrix:
    """W (n_0, rest), or its transpose where another mode than the first is divided: rows of it come
    in pieces, `each` for one of the divided mode, and `whole` is the length of the other side."""

    reading: Reading
    axes: tuple[int, ...]
    each: int
    whole: int

    @classmethod
    def of(cls, reading: Reading) -> Matrix:
        shape, along = reading.tensor.shape, reading.tensor.along
        others = tuple(k for k in range(1, len(shape)) if k != along)
        if along == 0:
            return cls(reading, (0, *others), 1, math.prod(shape[1:]))
        return cls(reading, (along, *others, 0), math.prod(shape[k] for k in others), shape[0])

    @property
    def own(self) -> int:
        """Rows of this process."""
        return self.reading.count * self.each

    @property
    def most(self) -> int:
        """Rows of the process that has most."""
        return self.reading.most * self.each

    def pieces(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """A pass: which rows, and these (some, whole)."""
        for own, piece in self.reading.pieces(rows, self.axes):
            at = slice(own.start * self.each, own.stop * self.each)
            yield at, piece.reshape(-1, self.whole)

    def of_gram(self, r: int) -> Need:
        """What a Gram and the sides of rank r take."""
        held = WholeSide.held(self.whole) + self._sides(r) + 3 * self.most * r * 8
        return Need(held, self._row + WholeSide.each(self.reading) + self.each * r * 8)

    def of_sketch(self, r: int, width: int) -> Need:
        """What a sketch takes."""
        # Of either side three: what goes into a QR or an SVD, what comes of it, and its copy.
        held = self._sides(r) + 8 * width * (3 * self.whole + 3 * self.most)
        return Need(held, self._row)

    def rows(self, what: str, need: Need) -> int:
        """Of a slab; ArgumentError where there is no room."""
        reading = self.reading
        check_room(what, reading.limit, [need], reading.tensor.along)
        return rows_within(reading.limit, need, reading.most)

    @property
    def _row(self) -> int:
        return self.reading.row_bytes(self.axes)

    def _sides(self, r: int) -> int:
        total = self.reading.shape[0] * self.each + self.whole
        return 3 * r * total * self.reading.dtype.itemsize + residual_bytes(self.reading)


@dataclass(frozen=True)
class Spectrum:
    """W taken apart.

    energies  squared singular values, descending; of a sketch those that it has
    right     (whole, k), the vectors of the whole side
    left      (own, k) those of the divided side, where a sketch has them
    """

    energies: Tensor
    right: Tensor
    left: Tensor | None = None

    def triples(self, matrix: Matrix, rows: int, r: int) -> tuple[Tensor, Tensor, Tensor]:
        """U (own, r), S (r,) and V (whole, r) in float64; without `left` in one pass."""
        values, right = self.energies[:r].sqrt(), self.right[:, :r]
        if self.left is not None:
            return self.left[:, :r], values, right
        left = right.new_empty(matrix.own, r)
        for at, piece in matrix.pieces(rows):
            left[at] = _wide_product(piece, right)
        lengths = matrix.reading.group.total(left.square().sum(0)).sqrt()
        return left.div_(torch.where(lengths > 0, lengths, 1)), lengths, right


def by_gram(matrix: Matrix, rows: int) -> Spectrum:
    """The whole spectrum, of the side that is whole; one pass."""
    side = WholeSide(matrix.whole, matrix.reading)
    for _, piece in matrix.pieces(rows):
        side.add(piece, 1)
    vectors, energies = side.spectrum()
    return Spectrum(energies, vectors)


def by_sketch(
    matrix: Matrix, rows: int, width: int, n_power_iter: int, rng: torch.Generator
) -> Spectrum:
    """Of W Omega Q^T-projected, Omega after power iterations: W^T (W Omega) of a piece needs it but
    once, so each is one pass.

    With Y = W Omega = Q R, the projection Q^T W is R^-T (Y^T W), and the sum of Y^T W came along
    with Y. For float64 the inverse would cost digits, and Q^T W is one pass more.
    """
    reading = matrix.reading
    test = torch.randn(
        matrix.whole, width, generator=rng, dtype=torch.float64, device=reading.device
    )
    for _ in range(n_power_iter):
        image = torch.zeros_like(test)
        for _, piece in matrix.pieces(rows):
            _add_normal(piece, test, image)
        del test
        test = torch.linalg.qr(reading.group.total(image))[0]
        del image
    sketch = test.new_empty(matrix.own, width)
    image = torch.zeros_like(test)
    for at, piece in matrix.pieces(rows):
        sketch[at] = _add_normal(piece, test, image)
    del test
    left, values, right = divided_svd(sketch, reading.group)
    del sketch
    if reading.dtype == torch.float64:
        image = torch.zeros(matrix.whole, left.shape[1], dtype=torch.float64, device=reading.device)
        for at, piece in matrix.pieces(rows):
            image.addmm_(piece.T, left[at])
        projected = reading.group.total(image)  # (whole, s): (Q^T W)^T
    else:
        seen = values > _NOISE * values[:1]
        inverse = torch.where(seen, 1 / torch.where(seen, values, 1), 0)
        projected = reading.group.total(image) @ (right.T * inverse)
    del image
    vectors, found, turn = thin_svd(projected)
    return Spectrum(found**2, vectors, left @ turn.T)


def _add_normal(piece: Tensor, test: Tensor, image: Tensor) -> Tensor:
    """W Omega of a piece; adds W^T of that to `image`. Float64, of blocks that are raised to it."""
    product = test.new_empty(len(piece), test.shape[1])
    for rows in _some_rows(piece):
        part, own = piece[rows], product[rows]
        own.copy_(_wide_product(part, test))
        for columns in _some_columns(part):
            image[columns].addmm_(part[:, columns].to(torch.float64).T, own)
    return product


def _wide_product(piece: Tensor, right: Tensor) -> Tensor:
    """Of a piece and (whole, c) in float64."""
    product = right.new_empty(len(piece), right.shape[1])
    for rows in _some_rows(piece):
        part, own = piece[rows], product[rows].zero_()
        for columns in _some_columns(part):
            own.addmm_(part[:, columns].to(torch.float64), right[columns])
    return product


def _some_rows(piece: Tensor) -> Iterator[slice]:
    step = max(_ROWS, _BLOCK // piece.shape[1])
    yield from (slice(k, k + step) for k in range(0, len(piece), step))


def _some_columns(part: Tensor) -> Iterator[slice]:
    step = max(1, _BLOCK // len(part))
    yield from (slice(k, k + step) for k in range(0, part.shape[1], step))


def _as_factors(matrix: Matrix, left: Tensor, values: Tensor, right: Tensor) -> LowRank:
    """Both sides whole, as those of W (n_0, rest), the root of each singular value in either."""
    reading, shape = matrix.reading, matrix.reading.tensor.shape
    roots = (values * reading.scale).sqrt()
    dtype = reading.tensor.dtype
    rows = torch.cat(reading.group.rows((left * roots).to(reading.dtype)))
    whole = (right * roots).to(reading.dtype)
    if reading.tensor.along == 0:
        return LowRank(rows.to(dtype), whole.T.contiguous().to(dtype), shape)
    # Columns of W in the order of its modes.
    r = rows.shape[1]
    apart = rows.reshape(*(shape[k] for k in matrix.axes[:-1]), r)
    back = [matrix.axes.index(k) for k in range(1, len(shape))]
    columns = apart.permute(*back, len(shape) - 1).reshape(-1, r)
    return LowRank(whole.to(dtype).contiguous(), columns.T.contiguous().to(dtype), shape)


def _true_error(matrix: Matrix, rows: int, factors: LowRank, norm: float) -> float:
    """Of factors as they are."""
    reading, shape = matrix.reading, matrix.reading.tensor.shape
    left, right = (side.to(reading.dtype) for side in (factors.left, factors.right))
    root = math.sqrt(reading.scale)
    left, right = left / root, right / root
    r, along = left.shape[1], reading.tensor.along
    start = reading.tensor.own.start

    def rebuilt(own: slice) -> Tensor:
        some = slice(start + own.start, start + own.stop)
        if along == 0:
            return (left[some] @ right).reshape(-1, *shape[1:])
        apart = right.reshape(r, *shape[1:])[(slice(None),) * along + (some,)]
        turned = apart.permute(*matrix.axes)  # (n_d, ..., r): the rank stands where n_0 does
        return turned.reshape(-1, r).matmul(left.T).reshape(*turned.shape[:-1], shape[0])

    return rel_error(reading, norm, rows, rebuilt, matrix.axes)


def _solver(matrix: Matrix, solver: str, r: int | None, width: int, n_power_iter: int) -> str:
    """The one asked for, or the one with fewer multiply-adds: w a number of W, or 2 s a product."""
    if r is None:
        if solver == "randomized":
            raise ArgumentError(
                "solver='randomized' needs rank=, a sketch does not see the energy that it leaves "
                "out; for error= use solver='gram'"
            )
        return "gram"
    if solver != "auto":
        return solver
    shorter = matrix.whole <= 2 * width * (n_power_iter + 1)
    room = matrix.reading.limit >= matrix.of_gram(r).least
    return "gram" if shorter and room else "randomized"
