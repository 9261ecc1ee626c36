"""Published rules: their ranks are those of their papers, within the budget."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression.losses._published import (
    FLAT,
    MOST_SPARSITY,
    TEMPERATURE,
    Sizes,
    block_influence_losses,
    effective_rank,
    effective_rank_losses,
    spectrum_shape_losses,
)
from tensorlrf.compression.plan._knapsack import Options, knapsack
from tensorlrf.compression.plan.allocation import PUBLISHED
from tensorlrf.errors import ArgumentError

spectra = st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=24)


def tails(values: list[float]) -> list[float]:
    """The energy beyond each rank of these, sorted."""
    squares = sorted((v * v for v in values), reverse=True)
    return [sum(squares[r:]) for r in range(len(squares) + 1)]


def options(sizes: Sizes, losses: list[float]) -> Options:
    """All ranks below break-even, and to stay."""
    ranks = [r for r in range(1, sizes.full + 1) if r * sizes.a_rank < sizes.params]
    cost = [r * sizes.a_rank for r in ranks]
    return Options.of([*cost, sizes.params], [*(losses[r] for r in ranks), 0.0])


@given(spectra, st.floats(0.1, 10.0))
def test_the_effective_rank_counts_directions(values: list[float], scale: float) -> None:
    found = effective_rank(tails(values))
    assert 1 - 1e-6 <= found <= len(values) * (1 + 1e-6)
    assert found == pytest.approx(effective_rank(tails([scale * v for v in values])), rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_equal_directions_count_as_many(n: int) -> None:
    assert effective_rank(tails([0.3] * n)) == pytest.approx(n)
    assert effective_rank([0.0] * (n + 1)) == 0


def test_ranks_go_with_the_root_of_the_effective_rank_over_their_cost() -> None:
    """Of two layers with four times the effective rank: twice the rank; and with a rank of four
    times the cost: half of it."""
    few, many = tails([1.0] * 16 + [0.0] * 48), tails([1.0] * 64)
    for sizes, energies in (
        ((Sizes(4096, 16, 64), Sizes(4096, 16, 64)), (few, many)),
        ((Sizes(16384, 64, 64), Sizes(4096, 16, 64)), (many, many)),
    ):
        named = dict(zip(("blocks.0.q", "blocks.1.q"), sizes, strict=True))
        losses = effective_rank_losses(named, dict(zip(named, energies, strict=True)))
        items = [options(named[name], losses[name]) for name in named]
        low, high = (k + 1 for k in knapsack(items, 16 * 3 * 16 * (sizes[0].a_rank // 16) ** 0.5))
        assert high / low == pytest.approx(2, rel=0.13)


@pytest.mark.parametrize("share", [0.2, 0.35, 0.5])
def test_each_type_of_matrix_keeps_the_share_of_the_model(share: float) -> None:
    """Queries of low effective rank, values of a high one: all of one size, in two blocks."""
    few, some, many = (tails([1.0] * n + [1e-3] * (256 - n)) for n in (4, 16, 200))
    energies = {"0.q": few, "1.q": some, "0.v": some, "1.v": many}
    sizes = dict.fromkeys(energies, Sizes(256 * 256, 256, 256))
    losses = effective_rank_losses(sizes, energies)
    items = [options(sizes[name], losses[name]) for name in sizes]
    whole = sum(size.params for size in sizes.values())
    chosen = knapsack(items, share * whole)
    kept = {name: items[k].cost[i] for k, (name, i) in enumerate(zip(sizes, chosen, strict=True))}
    for kind in "qv":
        own = kept[f"0.{kind}"] + kept[f"1.{kind}"]
        assert own == pytest.approx(share * whole / 2, rel=0.03)
        ratio = effective_rank(energies[f"1.{kind}"]) / effective_rank(energies[f"0.{kind}"])
        assert kept[f"1.{kind}"] / kept[f"0.{kind}"] == pytest.approx(ratio**0.5, rel=0.05)


@given(spectra, spectra, st.floats(0.2, 0.9))
def test_the_largest_normalised_singular_values_of_all_layers_are_kept(
    one: list[float], other: list[float], share: float
) -> None:
    values = [sorted(v, reverse=True) for v in (one, other)]
    sizes = [Sizes(10 * len(v), 10, len(v)) for v in values]
    items = [
        options(s, spectrum_shape_losses(s, tails(v))) for s, v in zip(sizes, values, strict=True)
    ]
    room = max(2, int(share * sum(s.full for s in sizes)))  # ranks, one at the least of each
    kept = [k + 1 for k in knapsack(items, 10 * room)]
    spread = [v[0] - v[-1] if v[0] - v[-1] > FLAT * v[0] else 0.0 for v in values]
    normal = [
        [(x - v[-1]) / s if s else 1.0 for x in v] for v, s in zip(values, spread, strict=True)
    ]
    lost = sum(sum(v[k:]) for v, k in zip(normal, kept, strict=True))
    rest = sorted([x for v in normal for x in v[1:]], reverse=True)
    assert lost <= sum(rest[room - 2 :]) * (1 + 2e-3) + 1e-6


@pytest.mark.parametrize("difference", [0.0, 0.005, 0.02])
def test_sparsity_is_a_softmax_of_influence(difference: float) -> None:
    sizes = Sizes(20_000, 20, 1000)
    items = [options(sizes, block_influence_losses(sizes, above)) for above in (0.0, difference)]
    more, less = (1 - (k + 1) / 1000 for k in knapsack(items, 0.7 * 2 * sizes.params))
    assert more + less == pytest.approx(0.6, abs=2e-3)
    assert less / more == pytest.approx(math.exp(-difference / TEMPERATURE), abs=0.01)


def test_sparsity_is_capped_unless_the_budget_asks_for_more() -> None:
    sizes = Sizes(20_000, 20, 1000)
    items = [options(sizes, block_influence_losses(sizes, above)) for above in (0.0, 1.0)]
    for share, most in ((0.55, MOST_SPARSITY), (0.1, 1.0)):
        sparsity = [1 - (k + 1) / 1000 for k in knapsack(items, share * 2 * sizes.params)]
        assert sum(sparsity) == pytest.approx(2 - 2 * share, abs=2e-3)
        assert max(sparsity) <= most + 1e-9


@given(spectra, st.floats(0.0, 2.0))
def test_losses_fall_to_nothing_at_the_break_even(values: list[float], above: float) -> None:
    sizes = Sizes(7 * len(values), 10, len(values))
    energies = tails(values)
    for losses in (
        effective_rank_losses({"0": sizes}, {"0": energies})["0"],
        spectrum_shape_losses(sizes, energies),
        block_influence_losses(sizes, above),
    ):
        assert len(losses) == len(energies)
        assert all(a >= b >= 0 for a, b in itertools.pairwise(losses))
        assert losses[-1] == 0
        assert math.isfinite(losses[0])


class Block(nn.Module):
    """x + f(x), of one width."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(torch.relu(self.up(x)))
        return y


def network(seed: int = 0, blocks: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(Block() for _ in range(blocks))).eval()


def inputs(seed: int = 0, n: int = 3) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(32, 64, generator=draws) for _ in range(n)]


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(PUBLISHED), st.floats(0.05, 0.95), st.integers(0, 3))
def test_the_budget_is_an_upper_bound(rule: str, share: float, seed: int) -> None:
    model = network(seed)
    found = tensorlrf.sensitivity(model, inputs(seed), rule=rule, progress=False)
    assert found.rule == rule
    assert tensorlrf.Sensitivity.from_json(found.to_json()) == found
    plan = tensorlrf.plan(model, keep_params=share, sensitivity=found)
    after = [row.params if row.method is None else row.params_after for row in plan.layers]
    assert sum(n or 0 for n in after) <= share * sum(row.params for row in plan.layers)


@pytest.mark.parametrize("rule", PUBLISHED)
def test_equal_layers_get_equal_shares(rule: str) -> None:
    """Layers side by side, of equal weights, that see the same inputs."""

    class Sides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sides = nn.ModuleList([nn.Linear(64, 64) for _ in range(4)])

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([side(x) for side in self.sides]).sum(0)

    model = Sides().eval()
    for side in model.sides:
        side.load_state_dict(model.sides[0].state_dict())
    found = tensorlrf.sensitivity(model, inputs(), rule=rule, progress=False)
    assert len({(row.ranks, row.losses) for row in found.layers}) == 1
    plan = tensorlrf.plan(model, keep_params=0.5, sensitivity=found)
    assert {row.rank for row in plan.layers} == {16}


@pytest.mark.parametrize("rule", PUBLISHED)
def test_compress_takes_the_word(rule: str) -> None:
    model = network()
    _, report = tensorlrf.compress(
        model, keep_params=0.5, calibration=inputs(n=20), allocation=rule, progress=False
    )
    assert report.eligible.share <= 0.5


def test_what_cannot_be_is_told() -> None:
    model = network()
    with pytest.raises(ArgumentError, match=r"'block_influence' looks at inputs"):
        tensorlrf.sensitivity(model, rule="block_influence")
    for rule in ("effective_rank", "spectrum_shape"):
        assert tensorlrf.sensitivity(model, rule=rule).rule == rule
    narrowing = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))
    with pytest.raises(ArgumentError, match="in a list of modules whose outputs have the shape"):
        tensorlrf.sensitivity(narrowing, inputs(), rule="block_influence", skip=[], progress=False)
    with pytest.raises(ArgumentError, match="effective_ranks"):
        tensorlrf.sensitivity(model, rule="effective_ranks")
