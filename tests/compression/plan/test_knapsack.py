"""The knapsack beside an integer program, with few layers and with many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from tensorlrf.compression.plan._knapsack import Options, knapsack
from tensorlrf.errors import ArgumentError

PROMISED = 1.005


def drawn(seed: int, n_layers: int, n_options: int, bumps: float) -> list[Options]:
    """Layers of unequal size whose losses fall over cost along a power of what is left out, over
    several orders of magnitude, and not quite convex; the last option loses nothing."""
    draws = np.random.default_rng(seed)
    items = []
    for _ in range(n_layers):
        size = int(draws.integers(50, 5000))
        shares = np.linspace(1 / n_options, 1, n_options)
        loss = 10 ** draws.uniform(-4, 0) * (1 - shares) ** draws.uniform(0.5, 4)
        loss *= 10 ** (bumps * draws.uniform(-1, 1, n_options))
        cost = np.ceil(size * shares)
        items.append(Options(cost, np.minimum.accumulate(loss)))
    return items


def total(items: list[Options], choice: list[int], what: str) -> float:
    return float(sum(getattr(item, what)[at] for item, at in zip(items, choice, strict=True)))


def least_loss(items: list[Options], budget: float) -> float:
    """By branch and bound of a linear program."""
    cost = np.concatenate([item.cost for item in items])
    loss = np.concatenate([item.loss for item in items])
    owner = np.repeat(np.arange(len(items)), [len(item.cost) for item in items])
    one_each = (owner == np.arange(len(items))[:, None]).astype(float)
    scale = max(float(loss.max()), 1e-300)
    found = milp(
        loss / scale,
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(cost[None], 0, budget)],
        integrality=np.ones(len(cost)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-4},
    )
    assert found.success
    return float(loss[np.round(found.x).astype(bool)].sum())


@given(
    seed=st.integers(0, 2**32 - 1),
    n_layers=st.integers(1, 6),
    n_options=st.integers(2, 10),
    share=st.floats(0.05, 1.0),
    bumps=st.sampled_from([0.0, 0.1, 0.5]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_few_layers(seed: int, n_layers: int, n_options: int, share: float, bumps: float) -> None:
    items = drawn(seed, n_layers, n_options, bumps)
    least = sum(float(item.cost.min()) for item in items)
    budget = max(least, share * sum(float(item.cost.max()) for item in items))
    choice = knapsack(items, budget)
    assert total(items, choice, "cost") <= budget
    assert total(items, choice, "loss") <= PROMISED * least_loss(items, budget) + 1e-15


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
@pytest.mark.parametrize("bumps", [0.0, 0.3])
def test_many_layers(share: float, bumps: float) -> None:
    items = drawn(5, 120, 12, bumps)
    budget = share * sum(float(item.cost.max()) for item in items)
    choice = knapsack(items, budget)
    assert total(items, choice, "cost") <= budget
    assert total(items, choice, "loss") <= PROMISED * least_loss(items, budget)


def test_one_order_for_every_budget() -> None:
    """The loss does not rise with the budget, but for what is proved to be near enough."""
    items = drawn(3, 8, 10, 0.3)
    whole = sum(float(item.cost.max()) for item in items)
    losses = [
        total(items, knapsack(items, share * whole), "loss") for share in np.linspace(0.15, 1, 30)
    ]
    assert all(b <= a * 1.001 for a, b in itertools.pairwise(losses))
    assert losses[-1] == 0


def test_what_costs_nothing_more_is_taken() -> None:
    item = Options.of([3, 3, 5], [2.0, 1.0, 0.0])
    assert knapsack([item], 3) == [1]
    assert knapsack([item, item], 8) in ([1, 2], [2, 1])


def test_a_budget_below_the_cheapest_options_is_refused() -> None:
    items = drawn(0, 3, 4, 0.0)
    least = sum(float(item.cost.min()) for item in items)
    with pytest.raises(ArgumentError, match="is below"):
        knapsack(items, least - 1)
    assert total(items, knapsack(items, least), "cost") == least


def test_a_thousand_layers_of_forty_ranks() -> None:
    """Beside the bound of Lagrange multipliers, which holds for every choice within the budget."""
    items = drawn(1, 1000, 40, 0.1)
    budget = 0.6 * sum(float(item.cost.max()) for item in items)
    choice = knapsack(items, budget)
    assert total(items, choice, "cost") <= budget
    bounds = [
        sum(float((item.loss + m * item.cost).min()) for item in items) - m * budget
        for m in np.geomspace(1e-8, 1e-2, 120)
    ]
    assert total(items, choice, "loss") <= PROMISED * max(bounds)
