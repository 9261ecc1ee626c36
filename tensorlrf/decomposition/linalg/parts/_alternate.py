"""What fits by turns share: parts of a sum, or two coded factors, each renewed for the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from tensorlrf.decomposition._descent import Descent, descend
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._target import Target
from tensorlrf.factors import Factors

F = TypeVar("F", bound=Factors)
S = TypeVar("S")
Callback = Callable[[Any, float], bool | None]
"""Called with the factors and their error after each sweep; True ends the fit."""


def by_turns(
    starts: Sequence[tuple[S, float]],
    sweep: Callable[[S], tuple[S, float]],
    pack: Callable[[S], F],
    tol: float | None,
    n_iter_max: int,
    callback: Callback | None = None,
) -> Fit[F]:
    """The best of the starts, swept until sweeps gain no more; one that raises the error is undone.

    Parameters
    ----------
    starts : sequence of (state, error)
    sweep : Callable
        From a state to the next one and its error.
    pack : Callable
        From a state to factors.
    tol, n_iter_max, callback
        As of the decomposition.

    Returns
    -------
    Fit
        Its errors are those on the way.
    """

    def watch(state: S, error: float) -> bool | None:
        assert callback is not None
        return callback(pack(state), error)

    begun = [Descent.at(state, error) for state, error in starts]
    run = descend(begun, sweep, tol, n_iter_max, watch=watch if callback else None)
    return Fit(pack(run.state), run.errors, run.converged, run.reason)


def served(
    target: Target[F],
    fit: Callable[[Target[F], Callback | None], Fit[F]],
    callback: Callback | None = None,
) -> Fit[F]:
    """The fit to a target with its true error behind those on the way; in a metric of inputs, or
    the plain fit where that serves them better."""
    if not target.is_plain:
        return fit_or_plain(
            target, lambda: fit(Target(target.source), None).factors, lambda: fit(target, None)
        )
    found = fit(target, callback)
    return replace(found, errors=(*found.errors, target.error(found.factors)))
