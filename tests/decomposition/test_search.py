"""The smallest rank within an error: found with few fits, none of them twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._search import doubled, search, smallest_within
from tensorlrf.errors import TensorlrfWarning
from tensorlrf.factors import LowRank

quick = settings(derandomize=True, deadline=None, max_examples=60)


@dataclass
class Fits:
    """Fits of rank 1, 2, ... with these errors; `tried` is which were asked for."""

    errors: Sequence[float]
    tried: list[int] = field(default_factory=list)

    def __call__(self, rank: int) -> Fit[LowRank]:
        self.tried.append(rank)
        factors = LowRank(torch.zeros(1, rank), torch.zeros(rank, 1))
        return Fit(factors, (self.errors[rank - 1],), True, f"rank {rank} of a list")

    def smallest(self, error: float) -> int:
        """The first rank within `error`."""
        return next(r for r, e in enumerate(self.errors, start=1) if e <= error)


def within(fits: Fits, error: float, **options: torch.Tensor | Sequence[int]) -> Fit[LowRank]:
    limit = len(fits.errors)
    return search(fits, None, error, limit, torch.float64, **options)  # type: ignore[arg-type]  # of either kind


def most(limit: int) -> int:
    """Fits that doubling and bisection may take."""
    return 2 * math.ceil(math.log2(limit)) + 2 if limit > 1 else 1


errors = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=80)


@quick
@given(errors=errors, pick=st.integers(0, 79), from_the_top=st.booleans())
def test_the_smallest_rank_is_found_where_errors_fall(
    errors: list[float], pick: int, from_the_top: bool
) -> None:
    fits = Fits(sorted(errors, reverse=True))
    error = fits.errors[pick % len(errors)]
    climb = {"climb": (len(errors),)} if from_the_top else {}
    found = within(fits, error, **climb)
    assert found.converged
    assert found.factors.rank == fits.smallest(error)
    assert len(fits.tried) == len(set(fits.tried)) <= most(len(errors))


@quick
@given(errors=errors, pick=st.integers(0, 79))
def test_where_errors_rise_again_one_rank_less_was_tried(errors: list[float], pick: int) -> None:
    fits = Fits(errors)
    error = max(fits.errors[-1], fits.errors[pick % len(errors)])
    found = within(fits, error)
    assert found.converged
    assert found.error <= error
    rank = found.factors.rank
    assert rank == 1 or (rank - 1 in fits.tried and fits.errors[rank - 2] > error)
    assert len(fits.tried) == len(set(fits.tried)) <= most(len(errors))
    assert all(r >= rank for r in fits.tried if fits.errors[r - 1] <= error)


@quick
@given(errors=errors, from_the_top=st.booleans())
def test_an_error_out_of_reach_warns_and_gives_full_rank(
    errors: list[float], from_the_top: bool
) -> None:
    fits = Fits(errors)
    climb = {"climb": (len(errors),)} if from_the_top else {}
    with pytest.warns(TensorlrfWarning, match="error=0.005 is out of reach"):
        found = within(fits, 0.005, **climb)
    assert not found.converged
    assert found.factors.rank == len(errors)
    assert "error=0.005" in found.reason
    assert len(fits.tried) == len(set(fits.tried)) <= most(len(errors))


@quick
@given(limit=st.integers(1, 80), exact=st.integers(1, 80))
def test_error_zero_is_kept_by_what_is_exact(limit: int, exact: int) -> None:
    exact = min(exact, limit)
    fits = Fits([1.0 if r < exact else 0.0 for r in range(1, limit + 1)])
    assert within(fits, 0.0).factors.rank == exact


def test_no_warning_of_what_cannot_be_told_from_rounding() -> None:
    found = within(Fits([0.5, 1e-17]), 0.0)
    assert not found.converged
    assert found.factors.rank == 2


def test_an_error_that_is_no_number_is_not_within() -> None:
    fits = Fits([math.nan, 0.5, math.nan, 0.1])
    assert within(fits, 0.2).factors.rank == 4


@st.composite
def spectra(draw: st.DrawFn) -> torch.Tensor:
    """Energies, descending, some of them equal or zero."""
    values = draw(st.lists(st.sampled_from([1.0, 0.5, 0.1, 1e-3, 0.0]), min_size=1, max_size=60))
    return torch.tensor(sorted([1.0, *values], reverse=True), dtype=torch.float64)


def left_out(energies: torch.Tensor) -> list[float]:
    """The errors of rank 1, 2, ... by these energies."""
    total = float(energies.sum())
    return [math.sqrt(float(energies[r:].sum()) / total) for r in range(1, len(energies) + 1)]


@quick
@given(energies=spectra(), error=st.floats(0.0, 1.0))
def test_energies_name_the_rank_at_once(energies: torch.Tensor, error: float) -> None:
    fits = Fits(left_out(energies))
    found = within(fits, error, energies=energies)
    assert found.converged
    assert len(fits.tried) == 1
    # Sums of energies in another order.
    room = 1 + 1e-12
    assert found.error <= max(error, torch.finfo(torch.float64).eps) * room
    assert found.factors.rank == 1 or fits.errors[found.factors.rank - 2] > error / room


@quick
@given(energies=spectra(), error=st.floats(0.0, 1.0), rounding=st.floats(1e-4, 1e-1))
def test_rounding_takes_ranks_above_those_of_the_energies(
    energies: torch.Tensor, error: float, rounding: float
) -> None:
    limit = len(energies)
    fits = Fits([math.hypot(e, rounding) for e in left_out(energies)])
    if error >= fits.errors[-1]:
        found = within(fits, error, energies=energies)
        assert found.converged
        assert found.factors.rank == fits.smallest(error)
    elif error < torch.finfo(torch.float64).eps:
        assert not within(fits, error, energies=energies).converged
    else:
        with pytest.warns(TensorlrfWarning, match="out of reach"):
            found = within(fits, error, energies=energies)
        # What ranks above have to add is less than rounding takes away.
        assert not found.converged
        assert found.factors.rank == fits.tried[0]
    assert len(fits.tried) == len(set(fits.tried)) <= 2 + math.ceil(math.log2(limit))


def test_a_rank_that_is_given_is_fitted_once() -> None:
    fits = Fits([0.5, 0.4, 0.3])
    found = search(fits, 2, None, 3, torch.float32)
    assert found.reason == "rank 2 of a list"
    assert fits.tried == [2]


@quick
@given(errors=errors, below=st.integers(0, 79), pick=st.integers(0, 79))
def test_nothing_below_what_is_known_is_tried(errors: list[float], below: int, pick: int) -> None:
    fits = Fits(sorted(errors, reverse=True))
    below = below % len(errors)
    error = fits.errors[max(below, pick % len(errors))]
    found = smallest_within(fits, error, (len(errors),), below=below)
    assert found.within
    assert found.rank == max(below + 1, fits.smallest(error))
    assert min(fits.tried) > below


@pytest.mark.parametrize(
    ("limit", "ranks"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])]
)
def test_ranks_are_doubled_up_to_the_limit(limit: int, ranks: list[int]) -> None:
    assert list(doubled(limit)) == ranks


def test_few_fits_are_held_at_once() -> None:
    """Fits of a large weight are large: of those tried, the best and the present one are alive."""
    alive: list[int] = []

    class Counted(Fit[LowRank]):
        def __del__(self) -> None:
            alive.remove(self.factors.rank)

    held: list[int] = []

    def fit(rank: int) -> Fit[LowRank]:
        held.append(len(alive))
        alive.append(rank)
        factors = LowRank(torch.zeros(1, rank), torch.zeros(rank, 1))
        return Counted(factors, (0.0 if rank >= 37 else 1.0,), True, "")

    search_of: Callable[[int], Fit[LowRank]] = fit
    found = smallest_within(search_of, 0.5, doubled(64))
    assert found.rank == 37
    assert max(held) <= 2
