"""One budget shared out over layers, whatever it counts and by whatever rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tensorlrf.compression import Allocation, LayerSensitivity, Sensitivity
from tensorlrf.compression.plan._allocated import Choice, Layer, allocated
from tensorlrf.compression.plan._uniform import Scale
from tensorlrf.compression.plan.budget import KEEPS, Budget
from tensorlrf.decomposition.ladder import Ladder, matrix_ladder
from tensorlrf.errors import ArgumentError

CLOSE = 1.001
"""A loss that is proved to be near enough to the least one."""

seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0.1, 1.0)
words = st.sampled_from(sorted(KEEPS))
sizes = st.lists(
    st.tuples(st.sampled_from([16, 24, 64, 96]), st.sampled_from([16, 48, 64])),
    min_size=1,
    max_size=6,
)


def scale_of(word: str, ladder: Ladder, draws: np.random.Generator) -> Scale:
    """What its rungs cost: a clock is noisy, and a layer may not be reached."""
    params = np.array([rung.params for rung in ladder.rungs], dtype=float)
    rows = int(draws.integers(0, 4))
    each = {
        "keep_params": 1,
        "keep_total": 1,
        "keep_bytes": int(draws.choice([2, 4, 8])),
        "keep_flops": 2 * rows,
        "keep_latency": rows * 1e-9,
    }[word]
    costs = each * params
    if word == "keep_latency":
        costs = (costs + rows * 2e-7) * draws.uniform(0.9, 1.1, len(costs))
    return Scale(float(each * ladder.dense), tuple(map(float, costs)))


def layers_of(word: str, shapes: list[tuple[int, int]], seed: int) -> list[Layer]:
    draws = np.random.default_rng(seed)
    found = []
    for k, (m, n) in enumerate(shapes):
        ladder = matrix_ladder(m, n)
        found.append(Layer.of((f"block.{k}",), ladder, scale_of(word, ladder, draws)))
    return found


def sensitivity_of(shapes: list[tuple[int, int]], seed: int) -> Sensitivity:
    """Losses that fall with the rank at rates of their own, over orders of magnitude."""
    draws = np.random.default_rng(seed)
    rows = []
    for k, (m, n) in enumerate(shapes):
        ranks = range(min(m, n) + 1)
        height, power = 10 ** draws.uniform(-3, 0), draws.uniform(0.5, 3)
        losses = tuple(height * (1 - r / min(m, n)) ** power for r in ranks)
        rows.append(LayerSensitivity(f"block.{k}", "Linear", (m, n), 1, tuple(ranks), losses))
    return Sensitivity("none", "measured", "nats a row", tuple(rows))


def cost(layers: list[Layer], choices: list[Choice]) -> float:
    return sum(layer.cost(choice) for layer, choice in zip(layers, choices, strict=True))


def loss(found: Sensitivity, choices: list[Choice]) -> float:
    pairs = zip(found.layers, choices, strict=True)
    return sum(row.loss_at(choice.params) for row, choice in pairs if choice is not None)


def feasible(layers: list[Layer], share: float) -> bool:
    least = sum(min((layer.scale.dense, *layer.scale.rungs)) for layer in layers)
    return least <= share * sum(layer.scale.dense for layer in layers)


@given(word=words, shapes=sizes, seed=seeds, share=shares, by_losses=st.booleans())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_budget_is_an_upper_bound(
    word: str, shapes: list[tuple[int, int]], seed: int, share: float, by_losses: bool
) -> None:
    layers = layers_of(word, shapes, seed)
    found = sensitivity_of(shapes, seed) if by_losses else None
    if not feasible(layers, share):
        with pytest.raises(ArgumentError, match=f"{word}=.* is the least they can do with"):
            allocated(layers, found, Allocation(), Budget(word, share))
        return
    choices = allocated(layers, found, Allocation(), Budget(word, share))
    whole = sum(layer.scale.dense for layer in layers)
    assert cost(layers, choices) <= share * whole * (1 + 1e-9)
    for layer, choice in zip(layers, choices, strict=True):
        assert choice is None or choice in layer.ladder.rungs
        assert choice is None or layer.cost(choice) < layer.scale.dense


@given(word=words, shapes=sizes, seed=seeds)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_what_can_stay_dense_does(word: str, shapes: list[tuple[int, int]], seed: int) -> None:
    """Staying is among the choices, and the one without a loss."""
    layers = layers_of(word, shapes, seed)
    choices = allocated(layers, sensitivity_of(shapes, seed), Allocation(), Budget(word, 1.0))
    assert choices == [None] * len(layers)


@given(word=words, shapes=sizes, seed=seeds, share=shares)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_losses_are_no_higher_than_those_of_uniform_ranks(
    word: str, shapes: list[tuple[int, int]], seed: int, share: float
) -> None:
    layers, found = layers_of(word, shapes, seed), sensitivity_of(shapes, seed)
    assume(feasible(layers, share))
    budget = Budget(word, share)
    ours, plain = (allocated(layers, by, Allocation(), budget) for by in (found, None))
    assert loss(found, ours) <= loss(found, plain) * CLOSE + 1e-15


@given(word=words, seed=seeds, share=shares, by_losses=st.booleans(), n=st.integers(2, 4))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_layers_together_have_one_rank(
    word: str, seed: int, share: float, by_losses: bool, n: int
) -> None:
    shapes = [(64, 64), (16, 48), (96, 64), (64, 48)][:n]
    layers = layers_of(word, shapes, seed)
    found = sensitivity_of(shapes, seed) if by_losses else None
    allocation = Allocation(together=("block.*",))
    try:
        choices = allocated(layers, found, allocation, Budget(word, share))
    except ArgumentError as error:
        assert "least they can do with" in str(error) or "no rank in common" in str(error)  # noqa: PT017
        return
    assert len({None if choice is None else choice.rank for choice in choices}) == 1
    assert cost(layers, choices) <= share * sum(x.scale.dense for x in layers) * (1 + 1e-9)


@given(
    word=words, shapes=sizes, seed=seeds, share=shares, by_losses=st.booleans(),
    least=st.floats(0.0, 0.9), multiple=st.sampled_from([1, 2, 8, 16]),
)  # fmt: skip
@settings(max_examples=100, deadline=None, derandomize=True)
def test_conditions_on_ranks_hold(
    word: str, shapes: list[tuple[int, int]], seed: int, share: float, by_losses: bool,
    least: float, multiple: int,
) -> None:  # fmt: skip
    layers = layers_of(word, shapes, seed)
    found = sensitivity_of(shapes, seed) if by_losses else None
    allocation = Allocation(least_share=least, multiple=multiple)
    try:
        choices = allocated(layers, found, allocation, Budget(word, share))
    except ArgumentError as error:
        assert "is the least they can do with" in str(error)  # noqa: PT017
        return
    for layer, choice in zip(layers, choices, strict=True):
        if choice is not None:
            assert choice.params >= least * layer.ladder.dense
            assert isinstance(choice.rank, int)
            assert choice.rank < multiple or choice.rank % multiple == 0


@given(shapes=sizes, seed=seeds, share=shares, factor=st.floats(1.0, 1e6))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_weight_on_a_layer_does_not_cost_it(
    shapes: list[tuple[int, int]], seed: int, share: float, factor: float
) -> None:
    """Two exact optima differ in that direction only: w L + R and L + R, each least for its w."""
    layers, found = layers_of("keep_params", shapes, seed), sensitivity_of(shapes, seed)
    budget = Budget("keep_params", share)
    assume(feasible(layers, share))
    before = allocated(layers, found, Allocation(), budget)
    after = allocated(layers, found, Allocation(weights={"block.0": factor}), budget)
    first = replace(found, layers=found.layers[:1])
    L, more = loss(first, before[:1]), loss(first, after[:1])
    # Each is within a part in a thousand of the least: that is how much they may be out of order.
    slack = 1e-3 * (loss(found, before) + factor * L + loss(found, before))
    assert (factor - 1) * more <= (factor - 1) * L + slack + 1e-12


def test_what_the_sensitivity_does_not_know_gets_its_share() -> None:
    shapes = [(64, 64), (96, 48)]
    layers, found = layers_of("keep_params", shapes, 0), sensitivity_of(shapes, 0)
    found = replace(found, layers=found.layers[:1])
    for share in (0.3, 0.6):
        _, other = allocated(layers, found, Allocation(), Budget("keep_params", share))
        assert other == layers[1].ladder.within(share)


def test_rungs_that_are_undercut_are_none() -> None:
    """A clock may find a higher rank faster, or every rank slower than the dense layer."""
    ladder = matrix_ladder(64, 64)
    n = len(ladder.rungs)
    costs = tuple(float(k) for k in range(n))
    slow = Layer.of(("a",), ladder, Scale(0.5, costs))
    assert slow.ladder.rungs == ladder.rungs[:1]
    bumpy = Layer.of(("a",), ladder, Scale(100.0, (9.0, 3.0, 3.0, *costs[3:])))
    assert [rung.rank for rung in bumpy.ladder.rungs[:2]] == [4, 5]
    assert list(bumpy.scale.rungs) == sorted(set(bumpy.scale.rungs))
    never = Layer.of(("a",), ladder, Scale(0.0, (0.0,) * n))
    assert never.ladder.rungs == ()


def test_words_that_cannot_be() -> None:
    layers, found = layers_of("keep_params", [(64, 64)], 0), sensitivity_of([(64, 64)], 0)
    budget = Budget("keep_params", 0.5)
    for allocation, words in (
        (Allocation(together=("none.*",)), "together: the glob 'none.*' matches no layer"),
        (Allocation(weights={"none.*": 2}), "weights: the glob 'none.*' matches no layer"),
    ):
        with pytest.raises(ArgumentError, match=words.replace("*", r"\*")):
            allocated(layers, found, allocation, budget)
    with pytest.raises(ArgumentError, match=r"with least_share=0.9; keep_params=1.0 is the least"):
        allocated(layers, found, Allocation(least_share=0.9, multiple=64), budget)
    with pytest.raises(ArgumentError, match="rule='uniform' has none"):
        Allocation(rule="uniform", weights={"a": 2.0})
