"""Cross approximation: a tensor train of a function of indices, from some of its values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.linalg._gram import thin_svd
from tensorlrf.decomposition.linalg.selection.maxvol import maxvol
from tensorlrf.decomposition.linalg.selection.values import Function, Values, checked_shape, drawn
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.decomposition.methods import factors_of
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error
from tensorlrf.decomposition.trains._tt_ranks import rank_limits, train_ranks
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import TTFactors
from tensorlrf.factors.algebra import share_norm
from tensorlrf.factors.autocast import without_autocast

NUMERICAL = 1e-14
"""Singular values below this share of the largest are rounding, and no pivots are taken there."""


@without_autocast()
@threaded
def fit_tt_cross(
    function: Function,
    shape: Sequence[int],
    rank: Rank | None = None,
    *,
    error: float | None = None,
    n_iter_max: int = 20,
    n_samples: int = 1000,
    random_state: int | torch.Generator | None = None,
) -> Fit[TTFactors]:
    """A tensor train of X[i_0, ..., i_{N-1}] = function(i), from few of its entries.

    Sweeps there and back evaluate the function on crosses of two modes with the rows and columns
    chosen so far, cut the singular values of each, and choose the next rows (columns) by maximal
    volume. A bond of rank r between sizes n costs up to (r n)^2 values a sweep. Where a sampled
    entry is worst its indices join the rows and columns of the next sweep.

    Parameters
    ----------
    function : callable
        From indices, an int64 tensor (M, N) on the CPU, to finite values, floating point, (M,); the
        train has their dtype and device.
    shape : tuple of int
        (n_0, ..., n_{N-1}), two modes at least.
    rank : int, tuple, float or str, optional
        As for `tt`, the most that a bond may have: it has less where the function does; or instead
    error : float, optional
        Relative error to stay within, by the estimate.
    n_iter_max : int
        Most sweeps.
    n_samples : int
        Entries drawn for each estimate of the relative error.
    random_state : int or Generator, optional

    Returns
    -------
    TTFactors
        Of `fit_tt_cross` a `Fit` with the estimated errors: after each sweep, and on a last draw.
        With `error=`, `converged` is False where the estimate did not come within it. `reason` says
        how many values of the function were taken.

    Raises
    ------
    ArgumentError, ShapeError
        Where the function returns what is not finite, not floating point or not (M,), with the
        first index.
    RankError
        For ranks as `tt` does.

    Notes
    -----
    Nothing is certain here: a function may differ from the train wherever it was not evaluated.
    What is reported, and decides when to stop, is the relative error over entries drawn uniformly
    with replacement, anew for every estimate; the last one is of the train as returned, on a draw
    that had no part in its choice.

    References
    ----------
    Oseledets & Tyrtyshnikov 2010; with two modes at a time, Savostyanov & Oseledets 2011.

    Examples
    --------
    >>> def function(i):
    ...     return 1.0 / (1.0 + i.sum(1).double())
    >>> f = tensorlrf.decomposition.tt_cross(function, (20, 20, 20), error=1e-6, random_state=0)
    >>> abs(f.to_dense()[3, 4, 5].item() - 1 / 13) < 1e-5
    True
    """
    rank, error = check_rank_or_error(rank, error)
    check_iteration(n_iter_max, None)
    sizes = checked_shape(shape)
    if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 1:
        raise ArgumentError(f"n_samples={n_samples!r} must be an int of at least 1")
    most = rank_limits(sizes) if rank is None else train_ranks(rank, sizes, math.prod(sizes))
    draws = generator(random_state, torch.device("cpu"))
    values = Values(function, "tt")
    cross = Cross(values, sizes, most, draws)
    bound = error if error is not None else 0.0
    aim = bound / 2
    errors: list[float] = []
    best: tuple[float, TTFactors] | None = None
    idle = 0
    converged = False
    for sweep in range(n_iter_max):
        factors = cross.sweep(sweep % 2 == 0, aim)
        check_rank_or_error(rank, error, factors.dtype)  # known only from the function's values
        estimate, worst = values.estimate(partial(entries, factors), drawn(sizes, n_samples, draws))
        errors.append(estimate)
        if best is None or estimate <= 0.9 * best[0]:
            idle = 0
        else:
            idle += 1
        if best is None or estimate < best[0]:
            best = estimate, factors
        if error is not None and best[0] <= bound:
            again, worst = values.estimate(
                partial(entries, best[1]), drawn(sizes, n_samples, draws)
            )
            if again <= bound:
                errors.append(again)
                converged = True
                break
            best = again, best[1]
        floor = 4 * len(sizes) * torch.finfo(factors.dtype).eps
        if error is None and (idle >= 2 or estimate <= floor):
            converged = True
            break
        cross.join(worst)
        # Interpolation raises what was cut, by how much is known only afterwards.
        aim = aim / 2 if idle else aim
    assert best is not None
    if not (converged and error is not None):
        errors.append(values.estimate(partial(entries, best[1]), drawn(sizes, n_samples, draws))[0])
    share = values.count / math.prod(sizes)
    reason = (
        f"{values.count:,} values of the function ({share:.2g} of the whole), error estimated on "
        f"{n_samples} entries"
    )
    return Fit(best[1], tuple(errors), converged, reason)


tt_cross = factors_of(fit_tt_cross)


class Cross:
    """Rows (the indices before a bond) and columns (those behind it) that are chosen so far."""

    def __init__(
        self, values: Values, sizes: Sequence[int], most: Sequence[int], draws: torch.Generator
    ) -> None:
        self.values, self.sizes, self.most = values, sizes, most
        d = len(sizes)
        start = drawn(sizes, min(2, min(most)), draws)
        none = start.new_zeros(1, 0)
        self.rows = [none, *(torch.unique(start[:, :k], dim=0) for k in range(1, d))]
        self.columns = [*(torch.unique(start[:, k:], dim=0) for k in range(d)), none]

    def join(self, index: Tensor) -> None:
        """Add the parts of `index` to the rows and the columns of every bond."""
        for k in range(1, len(self.sizes)):
            self.rows[k] = _with(self.rows[k], index[:k])
            self.columns[k] = _with(self.columns[k], index[k:])

    def sweep(self, forward: bool, aim: float) -> TTFactors:
        """New rows from the first bond to the last, or new columns from the last to the first,
        and the train that interpolates in them."""
        d = len(self.sizes)
        cores = [self.values.like] * d
        bonds = range(d - 1) if forward else range(d - 2, -1, -1)
        for k in bonds:
            # (rows n_k, n_{k+1} columns)
            above = _times(self.rows[k], _range(self.sizes[k]))
            beside = _times(_range(self.sizes[k + 1]), self.columns[k + 2])
            block = self.values(_times(above, beside)).reshape(len(above), len(beside))
            left, singular, right = thin_svd(block)
            r = self._rank(k, singular, aim)
            basis = left[:, :r] if forward else right[:r].T
            rest = singular[:r, None] * right[:r] if forward else left[:, :r] * singular[:r]
            pivots, weights = maxvol(basis)
            if forward:
                self.rows[k + 1] = above[pivots]
                cores[k] = weights.reshape(-1, self.sizes[k], r)
                cores[k + 1] = (basis[pivots] @ rest).reshape(r, self.sizes[k + 1], -1)
            else:
                self.columns[k + 1] = beside[pivots]
                cores[k + 1] = weights.T.reshape(r, self.sizes[k + 1], -1)
                cores[k] = (rest @ basis[pivots].T).reshape(-1, self.sizes[k], r)
        balanced = share_norm(cores, d - 1 if forward else 0)
        return TTFactors(tuple(c.to(self.values.like).contiguous() for c in balanced))

    def _rank(self, bond: int, singular: Tensor, aim: float) -> int:
        energies = singular**2
        beyond = energies.flip(0).cumsum(0).flip(0)
        budget = float(beyond[0]) * aim**2 / (len(self.sizes) - 1)
        real = int((singular > NUMERICAL * singular[0]).sum())
        return max(1, min(self.most[bond], real, int((beyond > budget).sum())))


def entries(factors: TTFactors, indices: Tensor) -> Tensor:
    """Entries (M,) of a train at `indices` (M, N), in float64 on the CPU."""
    state = torch.ones(indices.shape[0], 1, 1, dtype=torch.float64, device="cpu")
    for core, index in zip(factors.cores, indices.T, strict=True):
        state = state @ core.to("cpu", torch.float64)[:, index].transpose(0, 1)  # (M, 1, r)
    return state[:, 0, 0]


def _range(n: int) -> Tensor:
    """0 to n - 1 as rows (n, 1)."""
    return torch.arange(n, device="cpu")[:, None]


def _times(first: Tensor, second: Tensor) -> Tensor:
    """Every row of `first` beside every row of `second`, the second the faster."""
    a, b = len(first), len(second)
    return torch.cat([first.repeat_interleave(b, 0), second.repeat(a, 1)], dim=1)


def _with(indices: Tensor, index: Tensor) -> Tensor:
    known = bool((indices == index).all(1).any())
    return indices if known else torch.cat([indices, index[None]])
