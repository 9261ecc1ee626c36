"""Block low-rank approximation of a weight on a grid of blocks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration, finished
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._options import check_blocks, check_moments
from tensorlrf.decomposition._search import out_of_reach
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.blocks._allocation import Piece
from tensorlrf.decomposition.blocks._blr_batched import Weights, fit_blr_batched
from tensorlrf.decomposition.blocks._blr_criterion import Criterion
from tensorlrf.decomposition.blocks._blr_fit import TRIAL, Tiling, blocks_of, estimated, uniform
from tensorlrf.decomposition.blocks._blr_matrix import (
    check_pair,
    matrix_target,
)
from tensorlrf.decomposition.blocks._blr_search import best_of
from tensorlrf.decomposition.blocks._blr_spectra import BlockSpectra, grid
from tensorlrf.decomposition.config import Structured, config
from tensorlrf.decomposition.linalg._batched import check_batch_dims, check_batched_metric
from tensorlrf.decomposition.methods import Unfolded, factors_of, method, truncates
from tensorlrf.decomposition.rank import Rank, check_rank_or_error
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.factors import Batch, BlockLowRank

SWEEPS = 200
"""With `gram`, at most."""


@method(
    "blr",
    gives=BlockLowRank,
    on={"tensor", "linear"},
    estimates=True,
    order=(8, 7),
    sweeps_in_metric=True,
    law="no error above the one asked for; equal square blocks are shared out as brute force does",
    measured="blr",
)
def fit_blr(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    block: int | tuple[int, int] | None = None,
    dense_blocks: bool = True,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    batch_dims: int = 0,
    measure: bool = True,
) -> Fit[BlockLowRank] | Fit[Batch]:
    """A grid of blocks, each of a rank of its own or dense.

    A `tensor` (m, n) is cut into blocks (mb, nb), smaller ones at the end where they do not divide
    it; each becomes the nearest matrix of its rank. (In float32 and below, with an int as rank: to
    a thousandth of the error of the whole.)

    Parameters
    ----------
    tensor : Tensor or array of shape (m, n)
    rank : int, float or str, optional
        An int for all blocks (less where a block is smaller); a share of the parameters in (0, 1]
        (an upper bound, down to one rank of the cheapest block) or "same": ranks are shared out by
        energy per parameter over all blocks together, which for equal blocks without dense ones is
        the best allocation there is, and else keeps the budget (what is left below some 16
        roundings of the whole gets none); "auto": for every block the analytic estimate of
        `evbmf_rank`, from W whatever the metric: 0 for one that is noise alone, and never what
        would cost as much as its entries; or instead
    error : float, optional
        Relative error of the whole to stay within, with few parameters, shared out likewise.
    block : int or (mb, nb), optional
        By default the best of p x p equal parts (p = 1, 2, 4, 8) and of squares of 32 to 256: for a
        share the one with the least error, for `error` the one with the fewest parameters; an int
        or "auto" as rank needs a block.
    dense_blocks : bool
        Whether a block whose rank would cost as much as its entries is stored as it is.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the inputs. Errors are then relative errors of the outputs; from
        the plain solution on, each block in turn becomes the best of its rank for what the others
        leave of the outputs, and ranks are shared out by the energies of the outputs where that is
        better. Never worse in the outputs than without. What the inputs do not span follows the
        plain fit (`Fit.shrinkage`).
    mean : Tensor or array of shape (n,), optional
        The mean of the same inputs, with `gram`: the outputs about their mean.
    n_iter_max : int, optional
        With `gram`, most sweeps over the blocks, 200 by default.
    tol : float, optional
        With `gram`, stops when a sweep lowers the squared error by no more than this share of it;
        by default when more sweeps would gain little.
    batch_dims : int
        This many leading dimensions of `tensor` count equal weights that are decomposed at once, on
        one grid of blocks and with one set of ranks for all: shared out by the mean over the items
        of a block's energies as shares of its item, for `error` until every item is within it.
        Without `gram` and `rank="auto"`.

    Returns
    -------
    BlockLowRank
        With `batch_dims` a Batch of it. Of `fit_blr` a `Fit` with the relative errors: of the
        result, and with `gram` at the start and after each sweep before that. `converged` is False
        where `error` was not reached, or where sweeps ran out. With `batch_dims` the error is that
        of the whole batch, and `reason` tells the largest.

    Raises
    ------
    RankError
        For a rank below one or above the sides of a block.
    ShapeError
        For a block that does not fit.
    UnsupportedError
        For more than two modes.
    ArgumentError
        For what cannot be decomposed.

    Warns
    -----
    TensorlrfWarning
        Where rounding keeps `error` out of reach.
    ConvergenceWarning
        Where the default number of sweeps leaves over 2% to be gained.

    References
    ----------
    Amestoy et al. 2015.

    Examples
    --------
    >>> w = torch.rand(64, 64)
    >>> w[:32, 32:] = 1.0
    >>> f = tensorlrf.blr(w, error=1e-3, block=32)
    >>> [block.rank for block, _ in f.panels()]
    [None, 1, None, None]
    """
    # Without `measure`, as `blr` asks, the error is computed only where something is decided by
    # it, else NaN.
    tensor = as_tensor(tensor)
    rank, error = check_rank_or_error(rank, error, tensor.dtype)
    check_iteration(n_iter_max, tol)
    check_moments(gram, mean, n_iter_max=n_iter_max, tol=tol)
    if not isinstance(dense_blocks, bool):
        raise ArgumentError(f"dense_blocks={dense_blocks!r} must be True or False")
    check_batch_dims(batch_dims, tensor.ndim)
    if batch_dims:
        check_batched_metric(rank, gram)
        weights = Weights(tensor, batch_dims)
        return fit_blr_batched(
            weights, Criterion.of(rank, error, block, weights.shape), dense_blocks
        )
    target = matrix_target(tensor, gram, mean, "blr")
    criterion = Criterion.of(rank, error, block, target.shape)
    sweeps = SWEEPS if n_iter_max is None else n_iter_max
    params = math.floor((criterion.share or 0.0) * target.work.numel())

    def fitted(size: tuple[int, int], most: int) -> Fit[BlockLowRank]:
        # The energies of all directions serve to share ranks out, or to estimate them.
        keep = criterion.rank if target.is_plain and error is None else None
        tiling = on_grid(target, size, dense_blocks, keep)
        given = error is None and criterion.share is None
        blocks = blocks_of(tiling, most, tol, measure or not given)
        if error is not None:
            return blocks.within_error(error)
        if criterion.share is not None:
            return blocks.within_params(params)
        if criterion.rank is None:
            ranks, how = estimated(tiling.pieces, target.dtype), "ranks as estimated by evbmf"
        else:
            ranks, how = uniform(tiling.pieces, criterion.rank), f"rank {criterion.rank} as asked"
        return blocks.solve(ranks, how)

    def attempt(size: tuple[int, int]) -> tuple[tuple[float, ...], Fit[BlockLowRank]]:
        tried = fitted(size, min(TRIAL, sweeps))
        if error is None:
            # Blocks too large for one rank within the budget exceed it, and are none the better.
            over = max(0, tried.factors.n_params - params)
            return (over, target.loss(tried)), tried
        return (math.inf if tried.error > error else tried.factors.n_params,), tried

    if criterion.block is not None:
        fit = fitted(criterion.block, sweeps)
    else:
        # In the metric sizes are compared after some sweeps, and the best is continued.
        size, fit = best_of(target.shape, attempt)
        if not target.is_plain and sweeps > TRIAL:
            fit = fitted(size, sweeps)
    if error is not None and fit.error > error:
        return replace(fit, converged=False, reason=out_of_reach(error, fit.error, target.dtype))
    return finished(fit, n_iter_max)


blr = factors_of(fit_blr)


@config("blr")
class BLR(Structured):
    """Blocks of low rank, as a method of `compress`.

    Parameters
    ----------
    block : int or pair of int, optional
        Rows and columns of a block; searched for each layer by default.

    Examples
    --------
    >>> print(tensorlrf.BLR(block=64))
    blr(block=64)
    """

    block: int | tuple[int, int] | None
    dense_blocks: bool

    def check_options(self) -> None:
        super().check_options()
        check_blocks("block", self.block)
        if not isinstance(self.dense_blocks, bool):
            raise ArgumentError(f"dense_blocks={self.dense_blocks!r} must be True or False")

    @property
    def takes_any_form(self) -> bool:
        return True

    def least_params(self, shape: tuple[int, ...]) -> int:
        # One block of rank one, of the grid or of the whole.
        return 1 if self.block is not None else sum(shape)


@truncates("blr")
def _blocks(tensor: Tensor, *, block: Any) -> Unfolded:
    if tensor.ndim != 2:
        raise UnsupportedError(
            f"method='blr' takes a matrix, got shape {tuple(tensor.shape)}; use 'svd', 'kron' or "
            "'tucker' for a conv kernel"
        )
    shape = (int(tensor.shape[0]), int(tensor.shape[1]))
    mb, nb = check_pair(block, "block", 1, shape, "a block is no larger than the matrix")
    parts = [(place.of(tensor), 0) for place in grid(shape, (mb, nb))]
    yield f"{len(parts)} blocks {mb}x{nb}", parts


def on_grid(
    target: Target[Any], block: tuple[int, int], dense_blocks: bool = True, keep: int | None = None
) -> Tiling:
    """The blocks of a grid, taken apart, as far as `keep` directions of each."""
    spectra = BlockSpectra(target.work, grid(target.shape, block), keep)
    pieces = [
        Piece(place.rows, place.columns, energies, dense=dense_blocks)
        for place, energies in zip(spectra.places, spectra.energies, strict=True)
    ]
    return Tiling(target, spectra.places, pieces, spectra.content)
