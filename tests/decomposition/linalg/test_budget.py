"""A squared error shared over truncations: what is spent is never more than there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.linalg._budget import TruncationBudget, within_after_rounding

quick = settings(derandomize=True, deadline=None, max_examples=60)
ROOM = 1 + 1e-12  # sums in another order


@st.composite
def steps(draw: st.DrawFn) -> Tensor:
    """(turns, places, k) energies of truncations one after the other, descending."""
    turns, places, k = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 7))
    values = draw(
        st.lists(
            st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 0.4, 1.0, 3.0]),
            min_size=turns * places * k,
            max_size=turns * places * k,
        )
    )
    energies = torch.tensor(values, dtype=torch.float64).reshape(turns, places, k)
    return energies.sort(-1, descending=True)[0]


@quick
@given(energies=steps(), error=st.floats(0.0, 1.0), handed_on=st.booleans())
def test_what_is_left_out_adds_up_to_at_most_the_total(
    energies: Tensor, error: float, handed_on: bool
) -> None:
    turns, places, _ = energies.shape
    norms = energies[0].sum(-1)
    budget: TruncationBudget[Tensor] = TruncationBudget(
        torch.full((places,), error**2, dtype=torch.float64), turns, handed_on=handed_on
    )
    spent = torch.zeros(places, dtype=torch.float64)
    for step in energies:
        r = budget.choose(step)
        assert 1 <= r <= step.shape[-1]
        spent += step[:, r:].sum(-1)
    assert (spent <= error**2 * norms * ROOM).all()
    torch.testing.assert_close(budget.planned, spent / torch.where(norms > 0, norms, 1))


@quick
@given(energies=steps(), error=st.floats(0.0, 1.0))
def test_one_rank_less_would_exceed_a_share(energies: Tensor, error: float) -> None:
    turns, _, _ = energies.shape
    one = energies[:, 0]
    budget: TruncationBudget[Tensor] = TruncationBudget(error**2, turns, norm=float(one[0].sum()))
    for k, step in enumerate(one):
        spent = float(budget.spent)
        share = (error**2 * float(one[0].sum()) - spent) / (turns - k)
        r = budget.choose(step)
        assert float(step[r:].sum()) <= share * ROOM
        assert r == 1 or float(step[r - 1 :].sum()) * ROOM >= share


@quick
@given(energies=steps(), error=st.floats(0.0, 1.0), handed_on=st.booleans())
def test_a_batch_of_one_chooses_as_one_tensor_does(
    energies: Tensor, error: float, handed_on: bool
) -> None:
    turns = len(energies)
    one: TruncationBudget[Tensor] = TruncationBudget(error**2, turns, handed_on=handed_on)
    many: TruncationBudget[Tensor] = TruncationBudget(
        torch.tensor([error**2], dtype=torch.float64), turns, handed_on=handed_on
    )
    for step in energies:
        assert one.choose(step[0]) == many.choose(step[:1])
    torch.testing.assert_close(one.planned, many.planned[0])


@quick
@given(energies=steps(), errors=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3))
def test_a_common_rank_is_that_of_the_place_that_needs_most(
    energies: Tensor, errors: list[float]
) -> None:
    turns, places, _ = energies.shape
    squared = torch.tensor(errors[:places], dtype=torch.float64) ** 2
    alone = [
        TruncationBudget[Tensor](float(e), turns).choose(row)
        for e, row in zip(squared, energies[0], strict=True)
    ]
    assert TruncationBudget[Tensor](squared, turns).choose(energies[0]) == max(alone)


def test_what_a_truncation_does_not_use_is_handed_on() -> None:
    energies = torch.tensor([1.0, 0.06], dtype=torch.float64)
    later = torch.tensor([1.0, 0.09], dtype=torch.float64)
    for handed_on, rank in ((True, 1), (False, 2)):
        budget: TruncationBudget[Tensor] = TruncationBudget(0.16, 2, norm=1.0, handed_on=handed_on)
        assert budget.choose(energies) == 1
        assert budget.choose(later) == rank


def test_it_chooses_for_arrays_as_for_tensors() -> None:
    tails = np.array([[1.0, 0.5, 0.1, 0.0], [1.0, 0.2, 0.0, 0.0]])
    budget = TruncationBudget(np.array([0.3, 0.1]), norm=1.0)
    assert budget.smallest(tails) == 2
    budget.spend(tails[:, 2])
    assert not budget.covers(np.array([0.0, 0.2]))
    assert budget.covers(np.array([0.2, 0.1]) * 0.99)
    assert TruncationBudget(np.array([-1.0]), norm=1.0).smallest(tails[:1]) == 4


@pytest.mark.parametrize("rounding", [0.0, 0.05, 0.099, 0.3])
def test_room_is_made_for_rounding(rounding: float) -> None:
    """Errors that rounding adds to are brought within the one asked for, or given up."""
    energies = torch.logspace(0, -8, 400, dtype=torch.float64)
    norm, asked = float(energies.sum()), 0.1

    def truncated(budget: TruncationBudget[Tensor]) -> tuple[int, float]:
        r = budget.choose(energies)
        lost = float(energies[r:].sum()) / norm
        return r, math.sqrt(lost + rounding**2)

    def of_many(budget: TruncationBudget[Tensor]) -> tuple[int, Tensor]:
        """The same tensor, and one that rounding spares."""
        r = budget.choose(energies.expand(2, -1))
        lost = float(energies[r:].sum()) / norm
        return r, torch.tensor([lost + rounding**2, lost], dtype=torch.float64).sqrt()

    alone, tried = within_after_rounding(truncated, asked, 1, aims=asked)
    aims = torch.full((2,), asked, dtype=torch.float64)
    together, of_both = within_after_rounding(of_many, asked, 1, aims=aims)
    assert alone == together
    assert len(tried) <= 3
    assert tried == pytest.approx([float(errors[0]) for errors in of_both], rel=1e-12)
    if rounding < 0.09:
        assert alone is not None
        assert tried[-1] <= asked
    else:
        assert alone is None
