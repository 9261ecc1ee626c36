"""The pairs of shapes of a Kronecker product, and which of them are tried."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf.decomposition.kron import _shapes as _kron_shapes
from tensorlrf.decomposition.kron._kron import fit_kron
from tensorlrf.decomposition.kron._shapes import (
    TRIED,
    candidates,
    divisors,
    estimate,
    pairs_of,
    proper_pairs,
    rearranged,
    shortlist,
    sides,
    terms,
)
from tests.decomposition.kron.test_kron import discarded, planted, singular_values
from tests.draws import seeded


@given(st.integers(1, 3000))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_divisors_are_all_that_divide(n: int) -> None:
    assert divisors(n) == [d for d in range(1, n + 1) if n % d == 0]


@given(st.integers(1, 40), st.integers(1, 40))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_pairs_multiply_to_the_weight_and_the_cheapest_come_first(m: int, n: int) -> None:
    pairs = pairs_of(m, n)
    assert len(set(pairs)) == len(pairs) == len(divisors(m)) * len(divisors(n))
    assert all(a * c == m and b * d == n for (a, b), (c, d) in pairs)
    costs = [a * b + c * d for (a, b), (c, d) in pairs]
    assert costs == sorted(costs)
    proper = proper_pairs(m, n)
    assert set(proper) <= set(pairs)
    # A term of these is neither the whole weight nor an outer product.
    assert all((a * b > 1 or n == 1) and (c * d > 1 or n == 1) for (a, b), (c, d) in proper)
    composite = [sum(k % d == 0 for d in range(1, k + 1)) > 2 for k in (m, n)]
    if all(composite):
        assert all(1 not in (*one, *other) for one, other in proper)
    assert bool(proper) == any(composite)


def test_sides_of_length_one_only_where_nothing_else_is() -> None:
    assert proper_pairs(7, 6) == [((1, 3), (7, 2)), ((7, 2), (1, 3)), ((1, 2), (7, 3)),
                                  ((7, 3), (1, 2))]  # fmt: skip
    assert proper_pairs(7, 11) == []
    assert proper_pairs(6, 1) == [((2, 1), (3, 1)), ((3, 1), (2, 1))]


def test_rearrangement_makes_a_kronecker_product_an_outer_product() -> None:
    a, b = seeded(2, 3), seeded(4, 5, 2, 2, seed=1)
    weight = planted(1, ((2, 3), (4, 5)), 2, 2)
    torch.testing.assert_close(
        rearranged(weight, ((2, 3), (4, 5))), torch.outer(a.flatten(), b.flatten())
    )
    both = torch.stack([weight, 2 * weight])
    assert torch.equal(
        rearranged(both, ((2, 3), (4, 5)), 1)[1], 2 * rearranged(weight, ((2, 3), (4, 5)))
    )


def test_candidates_are_of_like_cost() -> None:
    for rank, limit in ((4, 1.25), (0.1, 4.0), (None, 4.0)):
        pairs = candidates((4096, 4096), rank)
        costs = [sum(sides(pair, 1)) for pair in pairs]
        assert costs[0] == min(costs) == 8192
        assert max(costs) <= limit * 8192
        assert ((64, 64), (64, 64)) in pairs
    # A share that only the cheaper pairs stay within.
    costs = [sum(sides(pair, 9)) for pair in candidates((64, 64, 3, 3), 0.012)]
    assert max(costs) <= 0.012 * 64 * 64 * 9
    # With so many terms only the pairs near the diagonal are left.
    assert {min(sides(pair, 1)) for pair in candidates((12, 12), 12)} == {12}
    assert terms(5, ((2, 2), (6, 6)), 1, strict=False) is None


@pytest.mark.parametrize("kernel", [(), (3,)])
@pytest.mark.parametrize("pair", [((4, 6), (6, 5)), ((12, 15), (2, 2)), ((2, 3), (12, 10))])
def test_an_estimate_from_the_whole_weight_is_exact(
    kernel: tuple[int, ...], pair: _kron_shapes.Pair
) -> None:
    weight = seeded(24, 30, *kernel)
    draws = torch.Generator().manual_seed(0)
    normalised = weight.reshape(1, 24, 30, -1)
    lost = estimate(normalised, pair, 4, 0.0, draws)
    assert math.sqrt(lost) == pytest.approx(discarded(weight, pair, 4), rel=1e-7)
    values = singular_values(weight, pair)
    fewest = int((values.flip(0).square().cumsum(0).flip(0) > 0.25 * values.norm() ** 2).sum())
    cost = fewest * sum(sides(pair, math.prod(kernel)))
    assert estimate(normalised, pair, None, 0.5, draws) == cost
    # Of two equal places it says the same.
    twice = torch.cat([normalised, normalised])
    assert estimate(twice, pair, 4, 0.0, draws) == pytest.approx(lost, rel=1e-7)


@pytest.mark.parametrize("pair", [((12, 8), (8, 12)), ((8, 16), (12, 6))])
@pytest.mark.parametrize("rank", [3, 0.1, None])
def test_planted_shapes_are_on_the_shortlist(
    pair: _kron_shapes.Pair, rank: int | float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen through noise and through a sample of a tenth of the weight."""
    monkeypatch.setattr(_kron_shapes, "SAMPLE", (24, 40))
    weight = planted(2, pair)
    weight = weight + 0.5 * weight.std() * seeded(96, 96, seed=9)
    draws = torch.Generator().manual_seed(0)
    listed = shortlist(weight[None, :, :, None], rank, 0.6, draws)
    assert pair in listed
    assert len(set(listed)) == len(listed) == TRIED
    # The pair with the cheapest terms is always tried.
    assert candidates((96, 96), rank)[0] in listed
    fit = fit_kron(weight, rank, error=0.6 if rank is None else None, random_state=0)
    (_, *one), (_, *other) = fit.factors.a.shape, fit.factors.b.shape
    assert (tuple(one), tuple(other)) == pair
