"""Functions of the entries of trains, by cross approximation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import check_sequence
from tensorlrf.decomposition.methods import factors_of
from tensorlrf.decomposition.rank import Rank
from tensorlrf.decomposition.trains._tt_algebra import check_alike
from tensorlrf.decomposition.trains._tt_cross import entries, fit_tt_cross
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import TTFactors
from tensorlrf.factors.kinds import check_format


def fit_tt_elementwise(
    function: Callable[..., Tensor],
    trains: Sequence[TTFactors],
    rank: Rank | None = None,
    *,
    error: float | None = None,
    n_iter_max: int = 20,
    n_samples: int = 1000,
    random_state: int | torch.Generator | None = None,
) -> Fit[TTFactors]:
    """A train of function(x, y, ...), entry by entry of trains x, y, ..., from few entries.

    Products of trains multiply their ranks, and other functions have no closed form at all; cross
    approximation finds what rank there is, and never has the whole.

    Parameters
    ----------
    function : callable
        From float64 values (M,) of every train to finite values (M,), as `torch.mul`,
        `torch.exp` or `lambda x, y: x / (1 + y ** 2)`.
    trains : sequence of TTFactors
        Of one shape, order of modes, dtype and device; two modes at least.
    rank, error, n_iter_max, n_samples, random_state
        As for `tt_cross`.

    Returns
    -------
    TTFactors
        In the dtype, on the device and with the modes of `trains`. Of `fit_tt_elementwise` a `Fit`
        as of `tt_cross`, whose errors are estimates on entries that were drawn.

    Raises
    ------
    ArgumentError, ShapeError
        Where the trains do not go together, or the function gives something else.
    RankError
        For ranks as `tt` does.

    References
    ----------
    Oseledets & Tyrtyshnikov 2010; Savostyanov & Oseledets 2011.

    Examples
    --------
    >>> f = tensorlrf.tt(torch.rand(6, 5, 4, dtype=torch.float64), 2)
    >>> g = tensorlrf.decomposition.tt_elementwise(torch.exp, [f], error=1e-8, random_state=0)
    >>> torch.allclose(g.to_dense(), f.to_dense().exp(), atol=1e-5)
    True
    """
    check_sequence(trains, "trains", "[x, y]")
    if not trains:
        raise ArgumentError("trains=[] is empty; give one train at least")
    for k, train in enumerate(trains):
        check_format(train, (TTFactors,), f"trains[{k}]", "pass TTFactors")
    first = trains[0].detach()
    for train in trains[1:]:
        check_alike(first, train)
    held = [train.detach().to("cpu", torch.float64) for train in trains]
    sizes = tuple(int(c.shape[1]) for c in first.cores)

    def values(indices: Tensor) -> Any:
        found = function(*(entries(train, indices) for train in held))
        return found.to(first.device, first.dtype) if isinstance(found, Tensor) else found

    fit = fit_tt_cross(
        values,
        sizes,
        rank,
        error=error,
        n_iter_max=n_iter_max,
        n_samples=n_samples,
        random_state=random_state,
    )
    factors = TTFactors(fit.factors.cores, first.modes)
    return Fit(factors, fit.errors, fit.converged, fit.reason)


tt_elementwise = factors_of(fit_tt_elementwise)
