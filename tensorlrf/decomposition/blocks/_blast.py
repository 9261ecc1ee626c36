"""Blocks that share their bases along rows and columns, coupled by diagonals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.decomposition._descent import Descent, check_iteration, finished
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._options import check_blocks
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.blocks._blast_als import Bases, SharedBases
from tensorlrf.decomposition.blocks._blast_start import of_low_rank, starts
from tensorlrf.decomposition.blocks._blr_matrix import (
    both,
    check_pair,
    matrix_target,
    too_many,
)
from tensorlrf.decomposition.config import Structured, config
from tensorlrf.decomposition.linalg._output_spectrum import OutputSpectrum
from tensorlrf.decomposition.linalg._spectrum import Spectrum, whole_spectrum
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, _share, check_rank_or_error, matrix_rank, whole
from tensorlrf.factors import BlastFactors

SWEEPS = 100
TOL = 1e-4

TRIAL = 10
"""Sweeps after which starts are compared."""

EXACT = 1e-11
"""A relative error below which there is nothing to be gained by another start."""


@method(
    "blast",
    gives=BlastFactors,
    on={"tensor", "linear"},
    order=(12, 11),
    law="no sweep raises the error",
    measured="formats: blast",
)
def fit_blast(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[BlastFactors]:
    """A grid of blocks that share bases: block (i, j) is `left[i] diag(scales[i, j]) right[j]`.

    A `tensor` (m, n) is padded with zeros to p x q equal blocks. Alternating least squares over
    left, scales and right from several starts: the truncated SVD, than which the result is never
    worse at the same rank; the singular bases of block rows and columns; and bases from
    eigenvectors, which are exact where the matrix has such bases and the rank is at most the sides
    of a block. No sweep raises the error.

    Parameters
    ----------
    tensor : Tensor or array of shape (m, n)
    rank : int, float or str, optional
        An int, at most min(m, n); a share of the parameters in (0, 1] (an upper bound, down to rank
        one) or "same"; or instead
    error : float, optional
        A rank that keeps this relative error, found by doubling and bisection: the error of a fit
        need not fall with the rank, so that a smaller one may exist.
    blocks : int or (p, q), optional
        By default 4, less for fewer than 16 rows or columns.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the inputs: errors are then relative errors of the outputs, and
        the sweeps go on in their metric from the plain solution, or from the SVD in that metric,
        whichever is better after some of them. What the inputs do not span follows the plain fit
        (`Fit.shrinkage`), than which the result is never worse in that metric.
    mean : Tensor or array of shape (n,), optional
        The mean of the same inputs, with `gram`: the outputs about their mean.
    n_iter_max : int, optional
        Most sweeps, 100 by default; with `gram` as many again, by default 200.
    tol : float, optional
        Stops when a sweep lowers the error by no more than this share of it, 1e-4 by default; with
        `gram` when more sweeps would gain little.
    random_state : int or Generator, optional
        Of the starts.

    Returns
    -------
    BlastFactors
        Of `fit_blast` a `Fit` with their relative errors: at the best start, after each sweep, and
        of the result; with `gram` those in the metric of the inputs. `converged` is False where
        sweeps ran out, or where `error` was not reached.

    Raises
    ------
    RankError
        For a rank below one or above min(m, n).
    ShapeError
        For blocks that do not fit.
    UnsupportedError
        For more than two modes.
    ArgumentError
        For what cannot be decomposed.

    Warns
    -----
    TensorlrfWarning
        Where rounding keeps `error` out of reach.
    ConvergenceWarning
        Where with `gram` the default number of sweeps leaves over 2% to be gained.

    References
    ----------
    Lee et al. 2024, "BLAST".

    Examples
    --------
    >>> w = torch.rand(32, 24)
    >>> f = tensorlrf.blast(w, 4, blocks=2, random_state=0)
    >>> f.rel_error(w) <= tensorlrf.svd(w, 4).rel_error(w) + 1e-6
    True
    """
    target = matrix_target(tensor, gram, mean, "blast")
    rank, error = check_rank_or_error(rank, error, target.dtype)
    check_iteration(n_iter_max, tol)
    m, n = target.shape
    if blocks is None:
        p, q = default_blocks(m, n)
    else:
        what = "there are no more blocks (p, q) than rows and columns"
        p, q = check_pair(blocks, "blocks", 1, (m, n), what)
    draws = generator(random_state, target.work.device)
    solver = _Solver(
        target,
        (p, q),
        n_iter_max,
        tol,
        draws,
    )
    r = None if rank is None else _shared_rank(rank, (m, n), (p, q))
    fit = search(solver.solve, r, error, min(m, n), target.dtype)
    return fit if target.is_plain else finished(fit, n_iter_max)


blast = factors_of(fit_blast)


@config("blast")
class Blast(Structured):
    """A grid of blocks with shared bases, as a method of `compress`.

    Examples
    --------
    >>> print(tensorlrf.Blast(blocks=4))
    blast(blocks=4)
    """

    blocks: int | tuple[int, int] | None

    def check_options(self) -> None:
        super().check_options()
        check_blocks("blocks", self.blocks)

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        return too_many(self.blocks, shape) or super().why_not(shape, groups)

    def least_params(self, shape: tuple[int, ...]) -> int:
        m, n = shape
        p, q = both(self.blocks) or default_blocks(m, n)
        return p * -(-m // p) + q * -(-n // q) + p * q

    def fresh_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> BlastFactors:
        m, n = shape
        p, q = both(self.blocks) or default_blocks(m, n)
        r = _shared_rank(rank, shape, (p, q))
        left, right = values(p, -(-m // p), r), values(q, r, -(-n // q))
        return BlastFactors(left, right, values(p, q, r), shape)


def _shared_rank(rank: Rank, shape: tuple[int, ...], blocks: tuple[int, int]) -> int:
    """Of all blocks: an int, or a share of all parameters."""
    (m, n), (p, q) = shape, blocks
    share = _share(rank)
    if share is None:
        return matrix_rank(rank, m, n)
    return max(1, min(m, n, whole(share * m * n / (p * -(-m // p) + q * -(-n // q) + p * q))))


def default_blocks(m: int, n: int) -> tuple[int, int]:
    """Blocks along the rows and columns of a matrix (m, n): four, or fewer where it is small."""
    return max(1, min(4, m // 4)), max(1, min(4, n // 4))


class _Solver:
    """A weight cut into blocks, plain and in the metric of its inputs."""

    def __init__(
        self,
        target: Target[Any],
        counts: tuple[int, int],
        n_iter_max: int | None,
        tol: float | None,
        draws: torch.Generator,
    ) -> None:
        self.target, self.draws = target, draws
        self.n_iter_max, self.tol = n_iter_max, tol
        (m, n), (p, q) = target.shape, counts
        mb, nb = -(-m // p), -(-n // q)
        padded = F.pad(target.matrix, (0, q * nb - n, 0, p * mb - m))
        self.plain = SharedBases(Target.of(padded, scale=1.0), counts)
        self.metric: SharedBases | None = None
        if not target.is_plain:
            self.metric = SharedBases(target.with_rows(padded), counts)

    @cached_property
    def svd(self) -> Spectrum:
        """The weight taken apart as `svd` does, to be cut at any rank."""
        return whole_spectrum(self.target.work)

    @cached_property
    def whitened(self) -> Spectrum:
        """The same in the metric of the inputs."""
        return OutputSpectrum(self.target, self.target.work)

    def solve(self, r: int) -> Fit[BlastFactors]:
        """Bases of rank r."""
        begun = starts(self.plain, self.svd, r, self.draws)
        run = self._from_best(self.plain, begun)
        # The cast rounds three factors where the scales are not one, and may leave what the
        # sweeps began with better than where they ended.
        ends = [run.state.balanced(), of_low_rank(self.plain, *self.svd.split(r))]
        reason = self._reason(r, run)
        usual = self._best(ends)
        if self.target.is_plain:
            errors = (*run.errors, self.target.error(usual))
            return Fit(usual, errors, run.converged, reason)

        def fit() -> Fit[BlastFactors]:
            assert self.metric is not None
            other = of_low_rank(self.plain, *self.whitened.split(r))
            served = self._from_best(self.metric, (run.state, other))
            best = self._best([served.state.balanced(), other])
            return Fit(best, served.errors, served.converged, self._reason(r, served))

        return fit_or_plain(self.target, lambda: usual, fit)

    def _best(self, ends: Sequence[Bases]) -> BlastFactors:
        """The best of these as factors."""
        packed = [self._pack(end) for end in ends]
        return min(packed, key=lambda factors: self.target.of_factors(factors).loss)

    @staticmethod
    def _reason(r: int, run: Descent[Bases]) -> str:
        return f"rank {r}, {run.how('a sweep gained little more')}"

    def _from_best(self, problem: SharedBases, begun: Iterable[Bases]) -> Descent[Bases]:
        """The start that is best after some sweeps, continued."""
        most, tol = self.n_iter_max, self.tol
        if problem.gram is None:
            most, tol = SWEEPS if most is None else most, TOL if tol is None else tol
        elif most is None:
            most = 2 * SWEEPS
        return problem.descend(begun, most, tol, min(TRIAL, most), EXACT)

    def _pack(self, at: Bases) -> BlastFactors:
        """Factors in the dtype of the weight."""
        root, dtype = self.target.root, self.target.dtype
        return BlastFactors(
            (at.left * root).to(dtype),
            (at.right * root).to(dtype),
            at.scales.to(dtype),
            self.target.shape,
        )
