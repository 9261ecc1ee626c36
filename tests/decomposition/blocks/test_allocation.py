"""Sharing ranks out: budgets kept, and the best there is at the ends of steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.decomposition.blocks._allocation import Allocation, Piece, Ranks
from tensorlrf.decomposition.linalg._budget import TruncationBudget


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    """Up to four blocks of unequal size and decay, some that must be dense or low-rank."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
        draws = np.random.default_rng(draw(st.integers(0, 1000)))
        energies = np.sort(draws.random(min(rows, columns)) ** 4)[::-1].copy()
        low_rank = draw(st.integers(0, 3)) > 0
        dense = draw(st.booleans()) or not low_rank
        rest = 0.01 if draw(st.integers(0, 3)) == 0 else 0.0
        made.append(Piece(rows, columns, energies, rest, low_rank, dense))
    return made


def n_params(made: list[Piece], ranks: Ranks) -> int:
    return sum(p.whole if r is None else r * p.each for p, r in zip(made, ranks, strict=True))


def least_params(made: list[Piece]) -> int:
    """Of any ranks that are not all zero."""
    return min(n for ranks in every(made) if (n := n_params(made, ranks)) > 0)


def left(made: list[Piece], ranks: Ranks) -> float:
    return sum(
        0.0 if r is None else float(p.energies[r:].sum()) + p.rest
        for p, r in zip(made, ranks, strict=True)
    )


def every(made: list[Piece]) -> list[Ranks]:
    options: list[Ranks] = []
    for p in made:
        low: Ranks = list(range(len(p.energies) + 1)) if p.low_rank else []
        options.append([*low, None] if p.dense else low)
    return [list(ranks) for ranks in product(*options)]


@settings(derandomize=True, deadline=None, max_examples=30)
@given(made=pieces())
def test_no_other_ranks_leave_less_at_the_end_of_a_step(made: list[Piece]) -> None:
    """Everett 1963: a minimum of parameters + price x energy is the best for its parameters."""
    allocation = Allocation(made)
    others = [(n_params(made, ranks), left(made, ranks)) for ranks in every(made)]
    for k in range(len(allocation) + 1):
        ranks = allocation.state(k)
        params, energy = n_params(made, ranks), left(made, ranks)
        assert params == allocation.cost[k]
        assert energy == pytest.approx(allocation.left[k], abs=1e-12)
        assert energy <= min(e for c, e in others if c <= params) + 1e-12


@settings(derandomize=True, deadline=None, max_examples=30)
@given(made=pieces(), share=st.floats(0.0, 1.1))
def test_parameters_are_kept(made: list[Piece], share: float) -> None:
    allocation = Allocation(made)
    params = int(share * sum(p.whole for p in made))
    ranks = allocation.within_params(params)
    assert n_params(made, ranks) <= max(params, least_params(made))
    # No worse than the last whole step that fits.
    k = int(np.count_nonzero(allocation.cost <= params)) - 1
    assert left(made, ranks) <= allocation.left[max(0, k)] + 1e-12


@settings(derandomize=True, deadline=None, max_examples=30)
@given(made=pieces(), share=st.floats(0.0, 1.0))
def test_an_energy_is_kept(made: list[Piece], share: float) -> None:
    allocation = Allocation(made)
    energy = share * sum(float(p.energies.sum()) + p.rest for p in made)
    ranks = allocation.within_energy(energy)
    assert left(made, ranks) <= max(energy, float(allocation.left[-1])) + 1e-12
    # No dearer than the first whole step that is enough, nor than one rank less anywhere.
    assert n_params(made, ranks) <= allocation.cost[allocation.first_within(energy)]
    for i, r in enumerate(ranks):
        if r and energy >= allocation.left[-1]:
            fewer = [*ranks[:i], r - 1, *ranks[i + 1 :]]
            assert left(made, fewer) > energy - 1e-12


def test_a_budget_below_every_block_buys_the_cheapest() -> None:
    flat = np.ones(1)
    # A row as it is costs less than one rank of it; of equal ones the first of more energy.
    assert Allocation([Piece(1, 64, flat)]).within_params(0) == [None]
    assert Allocation([Piece(1, 64, flat, dense=False)]).within_params(0) == [1]
    uneven = [Piece(8, 8, 9 * np.ones(8)), Piece(4, 4, np.ones(4)), Piece(4, 4, 2 * np.ones(4))]
    assert Allocation(uneven).within_params(7) == [0, 0, 1]


def test_tiny_energies_are_told_apart_without_cancellation() -> None:
    energies = 10.0 ** -np.arange(0.0, 40.0, 2.0)
    allocation = Allocation([Piece(40, 40, energies, dense=False)])
    for rank in (3, 10, 18):
        assert allocation.within_energy(float(energies[rank:].sum()) * (1 + 1e-9)) == [rank]
        assert allocation.within_params(10**6, enough=float(energies[rank:].sum()) * 1.01) == [rank]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(made=pieces(), share=st.floats(0.0, 1.0), seed=st.integers(0, 99), places=st.integers(1, 3))
def test_what_is_given_back_was_spare_in_every_place(
    made: list[Piece], share: float, seed: int, places: int
) -> None:
    """One set of ranks for many weights, whose energies have the means of the pieces."""
    made = [replace(p, rest=0.0) for p in made]
    draws = np.random.default_rng(seed)
    energies = []
    for p in made:
        parts = draws.random((places, 1)) + 0.1
        energies.append(p.energies * parts / parts.mean())
    allocation = Allocation(made)

    def left_in_each(ranks: Ranks) -> npt.NDArray[np.float64]:
        kept = [e[:, len(e[0]) if r is None else r :] for e, r in zip(energies, ranks, strict=True)]
        return np.sum([e.sum(1) for e in kept], axis=0)

    total = share * np.sum([e.sum(1) for e in energies], axis=0)
    reached = [k for k in range(len(allocation) + 1)
               if (left_in_each(allocation.state(k)) <= total).all()]  # fmt: skip
    if not reached:
        return
    budget = TruncationBudget(total, norm=1.0)
    budget.spend(left_in_each(allocation.state(reached[0])))
    ranks = allocation.given_back(reached[0], budget, energies)
    assert (left_in_each(ranks) <= total * (1 + 1e-12) + 1e-15).all()
    assert n_params(made, ranks) <= allocation.cost[reached[0]]
    alone = Allocation(made).within_energy(float(total.mean())) if places == 1 else ranks
    assert ranks == alone
