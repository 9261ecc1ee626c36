"""The smallest rank within an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition.linalg._gram import keep_within
from tensorlrf.errors import TensorlrfWarning, warn
from tensorlrf.factors import Factors


class Measured(Protocol):
    """What came of a rank."""

    @property
    def error(self) -> float:
        """True relative error, after the cast."""


F = TypeVar("F", bound=Factors)
T = TypeVar("T", bound=Measured)


@dataclass(frozen=True)
class Found(Generic[T]):
    """What a search ended with.

    rank    the smallest of those tried that is within the error, or the last one tried
    fit     of that rank
    within  whether it is within the error
    """

    rank: int
    fit: T
    within: bool


def search(
    fit_of_rank: Callable[[int], Fit[F]],
    rank: int | None,
    error: float | None,
    limit: int,
    dtype: torch.dtype,
    *,
    energies: Tensor | None = None,
    climb: Iterable[int] | None = None,
) -> Fit[F]:
    """The fit of `rank`, or of the smallest rank from 1 to `limit` whose `error` is kept.

    energies   (limit,) float64, descending, what each direction adds to the squared norm, where a
               fit of rank r leaves those beyond r but for the cast to `dtype`: then the rank that
               they name is tried first, and none below it
    climb      the ranks to try until one is within `error`, ascending, the last one `limit`;
               by default each is twice the one before

    Without energies a fit need not be better than one of smaller rank: what is claimed is only
    that one rank less, or less by as much as the ranks tried lay apart, was not enough. Warns
    (TensorlrfWarning) where rounding to `dtype` keeps `error` out of reach; then the fit is that of
    the energies, beyond which all is rounding, or that of full rank.
    """
    if rank is not None:
        return fit_of_rank(rank)
    bound = error or 0.0
    if energies is None:
        found = smallest_within(fit_of_rank, bound, climb or doubled(limit))
        if found.within:
            return found.fit
        reason = out_of_reach(bound, found.fit.error, dtype)
        return replace(found.fit, converged=False, reason=reason)
    target = max(bound, torch.finfo(working_dtype(dtype)).eps)
    first = keep_within(target**2 * float(energies.sum()))(energies)
    begun = fit_of_rank(first)
    if begun.error <= bound:
        reason = f"rank {first} is the smallest within {bound}, {begun.reason}"
        return replace(begun, reason=reason)
    if first == limit:
        found = Found(first, begun, False)
    else:
        found = smallest_within(fit_of_rank, bound, (limit,), below=first)
    if not found.within:
        reason = f"{out_of_reach(bound, found.fit.error, dtype)}, {begun.reason}"
        return replace(begun, converged=False, reason=reason)
    reason = f"rank {found.rank} is the smallest within {bound} after rounding, {found.fit.reason}"
    return replace(found.fit, reason=reason)


def smallest_within(
    fit_of_rank: Callable[[int], T], error: float, climb: Iterable[int], *, below: int = 0
) -> Found[T]:
    """By bisection, a rank above `below` that keeps `error` where one less does not.

    The ranks of `climb`, ascending, are tried until one keeps it. No rank is tried twice, and of
    the fits no more than two are held at once.
    """
    for above in climb:
        best = fit_of_rank(above)
        if best.error <= error:
            break
        below = above
    else:
        return Found(above, best, False)
    while above - below > 1:
        middle = (above + below) // 2
        tried = fit_of_rank(middle)
        if tried.error <= error:
            above, best = middle, tried
        else:
            below = middle
    return Found(above, best, True)


def doubled(limit: int) -> Iterator[int]:
    """1, 2, 4, ..., `limit`."""
    rank = 1
    while rank < limit:
        yield rank
        rank *= 2
    yield limit


def out_of_reach(
    error: float,
    reached: float,
    dtype: torch.dtype,
    rounded: str = "the factors",
    at: str = "full rank",
) -> str:
    """Warn that rounding to `dtype` leaves more than `error`, unless that is less than can be told
    from rounding; and return the reason."""
    if error >= torch.finfo(working_dtype(dtype)).eps:
        warn(
            f"error={error} is out of reach: rounding {rounded} to {dtype} leaves {reached:.3g} at "
            f"{at}; ask for more, or pass the weight in float32",
            TensorlrfWarning,
        )
    return f"rounding to {dtype} alone leaves more than error={error}"
