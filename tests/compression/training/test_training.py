"""Ranks that fall in the course of training, and optimisers that are told."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.nn import FactoredConv2d, FactoredLayer, FactoredLinear
from tests.draws import generator, seeded, seeded32

OPTIMISERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.02),
    "momentum": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.003, momentum=0.5),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3)
    )


def problem() -> tuple[Tensor, Tensor]:
    """A teacher whose hidden weights are of rank 2."""
    torch.manual_seed(5)
    teacher = network()
    with torch.no_grad():
        for k in (0, 2):
            w = teacher[k].weight
            w.copy_(3 * tensorlrf.svd(w, 2).to_dense())
        x = torch.randn(192, 12, generator=generator())
        return x, teacher(x)


def train(model: nn.Module, optimizer: Any, callback: Any, steps: int) -> list[float]:
    x, y = problem()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        callback.step()
        losses.append(float(loss.detach()))
    return losses


def loss_of(model: nn.Module) -> float:
    x, y = problem()
    with torch.no_grad():
        return float((model(x) - y).square().mean())


def ours(optimizer: Any) -> list[int]:
    return [id(p) for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_ranks_fall_to_what_is_wanted_and_so_does_the_loss(name: str) -> None:
    model = network()
    optimizer = OPTIMISERS[name](model.parameters())
    falling = tensorlrf.ProgressiveDecomposition(model, optimizer, rank=3, steps=60, every=10)
    begin, seen = loss_of(model), []
    for _ in range(12):
        train(model, optimizer, falling, 10)
        seen.append(falling.ranks["2"])
    assert falling.done
    assert seen == sorted(seen, reverse=True)
    assert seen[0] > seen[3] >= 3
    assert falling.ranks == {"0": 3, "2": 3, "4": 3}  # the last can have no more
    assert [type(m) for m in model if not isinstance(m, nn.Tanh)] == [
        FactoredLinear,
        FactoredLinear,
        nn.Linear,
    ]
    assert loss_of(model) < 0.5 * begin
    # The optimiser has all parameters of the model, each once, and trains them.
    assert sorted(ours(optimizer)) == sorted(id(p) for p in model.parameters())
    assert set(map(id, optimizer.state)) <= set(ours(optimizer))
    before = [p.clone() for p in model.parameters()]
    train(model, optimizer, falling, 1)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_trained_rank_pruning_leaves_a_model_of_that_rank(name: str) -> None:
    model = network()
    optimizer = OPTIMISERS[name](model.parameters())
    pruning = tensorlrf.RankPruning(model, optimizer, rank=3, every=10, nuclear=1e-3)
    begin = loss_of(model)
    train(model, optimizer, pruning, 120)
    dense = copy.deepcopy(model)
    assert torch.linalg.matrix_rank(dense[2].weight, rtol=1e-5) == 3  # step 120 has truncated
    assert pruning.finish() == {"0": 3, "2": 3}
    assert [m.factors.rank for m in model if isinstance(m, FactoredLayer)] == [3, 3]
    # Nothing is lost by factoring what is of low rank already.
    x, _ = problem()
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-4)
    assert loss_of(model) < 0.5 * begin
    assert sorted(ours(optimizer)) == sorted(id(p) for p in model.parameters())
    with pytest.raises(ArgumentError, match="finished"):
        pruning.step()


def test_the_nuclear_norm_takes_ranks_down_by_energy() -> None:
    found = []
    for nuclear in (0.0, 0.3):
        model = network()
        optimizer = OPTIMISERS["momentum"](model.parameters())
        pruning = tensorlrf.RankPruning(model, optimizer, energy=0.99, every=5, nuclear=nuclear)
        assert pruning.ranks == {"0": 12, "2": 24, "4": 3}
        train(model, optimizer, pruning, 100)
        found.append(pruning.ranks["2"])
    assert found[1] < found[0] < 24


def test_between_truncations_a_step_takes_off_the_subgradient() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    pruning = tensorlrf.RankPruning(model, optimizer, rank=2, every=2, nuclear=0.1)
    before = [model[2].weight.detach().clone()]
    for _ in range(3):
        pruning.step()
        before.append(model[2].weight.detach().clone())
    assert torch.equal(before[0], before[1])  # nothing is known of it yet
    u, s, v = torch.linalg.svd(before[0])
    torch.testing.assert_close(before[2], u[:, :2] * s[:2] @ v[:2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(before[2] - before[3], 0.05 * u[:, :2] @ v[:2], atol=1e-5, rtol=1e-4)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(2, 6), st.integers(2, 6), st.data())
def test_moments_go_the_way_of_gradients(m: int, n: int, data: st.DataObject) -> None:
    """Momentum of a weight, and then of its factors, is that of gradients by the chain rule."""
    r = data.draw(st.integers(1, min(m, n)))
    low = data.draw(st.integers(1, r))
    linear = nn.Linear(n, m, bias=False).double()
    model = nn.Sequential(FactoredLinear(tensorlrf.svd(linear.weight, r)), nn.Identity())
    layer: Any = model[0]
    with torch.no_grad():  # no order of its terms
        mix = seeded(r, r) + 3 * torch.eye(r, dtype=torch.float64)
        layer.left.copy_(layer.left @ mix)
        layer.right.copy_(torch.linalg.solve(mix, layer.right))
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    x, w = seeded(5, n), seeded(5, m, seed=1)
    (model(x) * w).sum().backward()
    optimizer.step()
    falling = tensorlrf.ProgressiveDecomposition(model, optimizer, rank=low, steps=1, skip=[])
    falling.step()
    assert layer.factors.rank == low
    optimizer.zero_grad()
    (model(x) * w).sum().backward()
    for p in (layer.left, layer.right):
        if low < r:
            torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], p.grad)
        else:
            assert p in optimizer.state


def test_moments_of_a_dense_weight_go_to_both_factors() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.0)
    x, y = problem()
    (model(x) - y).square().mean().backward()
    optimizer.step()
    falling = tensorlrf.ProgressiveDecomposition(model, optimizer, rank=3, steps=1)
    dense = {k: copy.deepcopy(optimizer.state[model[k].weight]) for k in (0, 2)}
    falling.step()
    for k in (0, 2):
        layer: Any = model[k]
        state = optimizer.state[layer.left]
        torch.testing.assert_close(state["exp_avg"], dense[k]["exp_avg"] @ layer.right.T)
        torch.testing.assert_close(
            optimizer.state[layer.right]["exp_avg"], layer.left.T @ dense[k]["exp_avg"]
        )
        assert bool((state["exp_avg_sq"] >= 0).all())
        assert state["step"] == dense[k]["step"]


def test_convolutions_and_factored_models_take_part() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 12, 3, padding=1)
    kept = tensorlrf.nn.factorize(nn.Conv2d(12, 12, 3), "svd", 9)
    model = nn.Sequential(conv, nn.ReLU(), kept, nn.Flatten(), nn.Linear(12 * 16, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    falling = tensorlrf.ProgressiveDecomposition(model, optimizer, rank=4, steps=4, every=2)
    x = seeded32(3, 6, 6, 6)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        falling.step()
    assert falling.ranks == {"0": 4, "2": 4, "4": 2}
    assert all(isinstance(model[k], FactoredConv2d) for k in (0, 2))
    assert model[2] is kept  # cut where it stands
    assert torch.isfinite(model(x)).all()


def test_a_share_and_layers_that_stay() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    falling = tensorlrf.ProgressiveDecomposition(model, optimizer, rank=0.5, steps=1, skip=["0"])
    falling.step()
    assert falling.ranks == {"2": 6, "4": 1}
    assert isinstance(model[0], nn.Linear)
    frozen = network()
    frozen[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in frozen.parameters() if p.requires_grad], 0.1)
    tensorlrf.ProgressiveDecomposition(frozen, optimizer, rank=2, steps=1).step()
    assert not any(p.requires_grad for p in (frozen[2].left, frozen[2].right))
    assert len(ours(optimizer)) == sum(p.requires_grad for p in frozen.parameters())


def test_bad_arguments_are_refused() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruning: Any = tensorlrf.RankPruning
    falling: Any = tensorlrf.ProgressiveDecomposition
    with pytest.raises(ArgumentError, match="optimizer is a list"):
        pruning(model, [], rank=2)
    for given_ in ({}, {"rank": 2, "energy": 0.9}, {"energy": 1.5}, {"energy": True},
                   {"rank": 2, "every": 0}, {"rank": 2, "nuclear": -1.0}, {"rank": 0}):  # fmt: skip
        with pytest.raises((ArgumentError, RankError)):
            pruning(model, optimizer, **given_)
    for given_ in ({"rank": 2, "steps": 0}, {"rank": 1.5, "steps": 2}, {"rank": "x", "steps": 2}):
        with pytest.raises((ArgumentError, RankError)):
            falling(model, optimizer, **given_)
    with pytest.raises(ArgumentError, match="no linear layer"):
        falling(nn.Sequential(nn.ReLU()), optimizer, rank=2, steps=1)
    with pytest.raises(ArgumentError, match="wrap it"):
        falling(nn.Linear(3, 3), optimizer, rank=2, steps=1, skip=[])
