"""Completion that a few entries of any size do not lead astray: the sum of absolute residuals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration, settled
from tensorlrf.decomposition._fit import Fit, factors_of
from tensorlrf.decomposition._options import check_callback
from tensorlrf.decomposition.linalg.observed._complete import SWEEPS, Posed, Watch
from tensorlrf.decomposition.linalg.observed._observed import Observed, known_of, observe
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.decomposition.methods import find, names, registered
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import Factors
from tensorlrf.factors.autocast import without_autocast

CLIPPED = 3.0
"""Sizes of entries, in medians, above which they are cut off where a start is sought."""

SHRUNK = 0.95
"""By which the median has to fall within a sweep for another one, whatever the error gained."""

SMOOTHED = 0.1
"""Residuals below this share of their median count by their squares."""


@without_autocast()
@threaded
def fit_robust_completion(
    tensor: Any,
    method: str = "cp",
    rank: Any = 1,
    *,
    mask: Any = None,
    weights: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Watch | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[Factors]:
    """Factors with the least sum of absolute residuals over the known entries.

    Squares let a single entry that is far off bend all factors to it; absolute residuals do not, as
    long as such entries are few. Least squares are reweighted by the inverse of each residual and
    swept again (IRLS), residuals far below their median as if they were of that size.

    Parameters
    ----------
    tensor : Tensor or array
        Of any float dtype, as the decomposition itself takes it.
    method : str
        Of those that take `mask=`: "cp", "tucker", "tt", "svd".
    rank : int, tuple, float or str
        As the decomposition takes it, but for "auto".
    mask, weights : Tensor or array of the shape of `tensor`, optional
        As of the decomposition: what is hidden is never read, and absolute residuals count by the
        weights. All entries by default.
    n_iter_max : int, optional
        Most sweeps, 500 by default.
    tol : float, optional
        The share of the error that a sweep must gain for another one; by default they end when more
        would gain little.
    callback : callable, optional
        Called as callback(factors, error) after each sweep; returning True stops.
    random_state : int or Generator, optional
        Of starts that draw.

    Returns
    -------
    Factors
        Of the format of `method`. Of `fit_robust_completion` a `Fit`, whose errors are sums of
        absolute residuals over the known entries, relative to that of the entries themselves: at
        the start, the least so far after each sweep, and of the result.

    Raises
    ------
    ArgumentError, ShapeError, RankError, UnsupportedError
        As the decomposition does for what cannot be completed, and for a method that takes no
        `mask=`.

    References
    ----------
    Ke & Kanade 2005, "Robust L1 norm factorization in the presence of outliers and missing data";
    Daubechies, DeVore, Fornasier & Gunturk 2010 (IRLS).

    Examples
    --------
    >>> whole = torch.rand(20, 2) @ torch.rand(2, 15)
    >>> spoilt = whole.clone().fill_diagonal_(1e3)
    >>> f = tensorlrf.robust_completion(spoilt, "svd", 2)
    >>> f.rel_error(whole) < 1e-2 < tensorlrf.svd(spoilt, 2).rel_error(whole)
    True
    """
    served = [name for name in names("tensor") if registered(name).completes]
    found = find(method, "tensor", others=served)
    pose = found.completes
    if pose is None:
        raise UnsupportedError(
            f"method={method!r} is not posed to single entries; choose one of {', '.join(served)}"
        )
    check_iteration(n_iter_max, tol)
    check_callback(callback, None)
    seen = observe(tensor, known_of(tensor, mask), weights)
    draws = generator(random_state, seen.data.device)
    start = next(iter(pose(_clipped(seen), rank, draws).starts))
    posed: Posed[Any, Factors] = pose(seen, rank, draws)
    most = SWEEPS if n_iter_max is None else n_iter_max
    with torch.no_grad():
        return _reweighted(seen, posed, start, most, tol, callback)


robust_completion = factors_of(fit_robust_completion)


def _clipped(seen: Observed) -> Observed:
    """Entries no larger than some medians of their sizes."""
    known = seen.weights > 0
    bound = CLIPPED * float(seen.data[known].abs().median())
    return replace(seen, data=seen.data.clamp(-bound, bound)) if bound > 0 else seen


def _reweighted(
    seen: Observed,
    posed: Posed[Any, Factors],
    start: Any,
    most: int,
    tol: float | None,
    callback: Watch | None,
) -> Fit[Factors]:
    entries, completing, _ = posed
    known = entries.weights > 0
    state = best = start
    rest = (entries.data - completing.model(state)).abs()
    errors = [_error(entries, rest)]
    floor = float(torch.finfo(entries.data.dtype).eps * entries.data[known].abs().median())
    smoothed, reason, converged = math.inf, f"n_iter_max={most} sweeps", False
    for number in range(1, most + 1):
        before = smoothed
        smoothed = max(floor, min(smoothed, SMOOTHED * float(rest[known].median())))
        if smoothed == 0:
            break
        counts = smoothed / rest.clamp_min(smoothed)  # in (0, 1]
        state = completing.sweep(entries.reweighted(counts), state)
        rest = (entries.data - completing.model(state)).abs()
        error = _error(entries, rest)
        best = state if error <= min(errors) else best
        errors.append(min(error, errors[-1]))
        if callback is not None and callback(completing.factors(best), errors[-1]):
            reason = f"stopped by callback after sweep {number}"
            break
        # What is far off is most of the error: while the median falls, more is to be gained.
        if smoothed >= SHRUNK * before and settled(errors, tol):
            reason, converged = f"sweep {number} lowered the error by less than tol", True
            break
    factors = completing.factors(best)
    dense = factors.to(seen.data.dtype).to_dense() / seen.scale
    final = _error(seen, (seen.data - dense).abs())
    return Fit(factors, (*errors, final), converged, reason)


def _error(seen: Observed, rest: Tensor) -> float:
    """Sum of weighted absolute residuals over that of the entries."""
    pair = rest, seen.data.abs()
    left, whole = (float((t * seen.weights).sum(dtype=torch.float64)) for t in pair)
    return left / whole if whole > 0 else left
