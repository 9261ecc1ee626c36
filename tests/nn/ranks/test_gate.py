"""A gate in front of a layer: as many terms as an input needs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn import FactoredLinear, RankGate
from tests.draws import generator, seeded


def layer(rank: int = 8) -> FactoredLinear:
    """Of falling singular values."""
    w = torch.linalg.svd(seeded(16, 12))
    values = 0.6 ** torch.arange(rank, dtype=torch.float64)
    f = tensorlrf.LowRank(w.U[:, :rank] * values, w.Vh[:rank])
    return FactoredLinear(f, seeded(16, seed=2))


def inputs(n: int = 40) -> list[Tensor]:
    """Some of the leading directions alone, some of all."""
    draws = generator(3)
    _, _, v = torch.linalg.svd(seeded(16, 12))
    found = []
    for k in range(n):
        z = torch.randn(3, 12, generator=draws, dtype=torch.float64)
        z[:, 2:] *= 0.05 if k % 2 else 1.0
        found.append(z @ v)
    return found


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 8), st.sampled_from([1e-6, 0.1, 0.4, 0.9]), st.integers(0, 39))
def test_it_computes_what_the_leading_terms_do(rank: int, error: float, at: int) -> None:
    own, x = layer(rank), inputs()[at]
    gate = RankGate.fit(own, inputs(), error=error)
    y = gate(x)
    (taken,) = gate.taken
    assert gate.taken[taken] == 3
    assert taken in (*gate.ranks, rank)
    assert gate.mean_rank == taken
    with tensorlrf.rank_scale(own, taken):
        torch.testing.assert_close(y, own(x))
    assert gate(x[0]).shape == (16,)


def test_inputs_of_few_directions_take_few_terms_and_errors_are_as_asked() -> None:
    own = layer()
    gate = RankGate.fit(own, inputs()[:20], error=0.2)
    few, many = [], []
    lost = whole = 0.0
    for k, x in enumerate(inputs()[20:]):
        gate.taken.clear()
        y = gate(x).detach()
        (few if k % 2 else many).append(gate.mean_rank)
        wanted = own(x).detach()
        lost += float((y - wanted).square().sum())
        whole += float((wanted - own.bias.detach()).square().sum())
    assert sum(few) / len(few) < sum(many) / len(many)
    assert math.sqrt(lost / whole) < 0.25


def test_a_tight_error_takes_all_terms_and_gradients_flow() -> None:
    own = layer()
    gate = RankGate.fit(own, inputs(), error=1e-9)
    x = inputs()[0].requires_grad_()
    torch.testing.assert_close(gate(x), own(x))
    gate(x).sum().backward()
    assert own.left.grad is not None
    assert x.grad is not None
    assert gate.taken.keys() == {8}


def test_a_model_gets_gates_of_what_arrives_at_its_layers() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 6)
    )
    batches = [torch.randn(12, 12) * torch.logspace(0, -2, 12) for _ in range(14)]
    small, _ = tensorlrf.compress(
        dense, keep_params=0.8, method="svd", calibration=batches, skip=[]
    )
    tensorlrf.order_by_energy(small, batches)
    gated = tensorlrf.gate_ranks(small, batches, error=0.2)
    gates = [m for m in gated.modules() if isinstance(m, RankGate)]
    assert len(gates) == sum(isinstance(m, FactoredLinear) for m in small.modules())
    assert not any(isinstance(m, RankGate) for m in small.modules())
    with torch.no_grad():
        x = torch.cat(batches)
        lost = torch.dist(gated(x), small(x)) / small(x).norm()
    assert lost < 0.5
    assert all(g.mean_rank < g.layer.factors.rank for g in gates)
    tight = tensorlrf.gate_ranks(small, batches, error=1e-9)
    torch.testing.assert_close(tight(x), small(x))


def test_bad_arguments_are_refused() -> None:
    gate: Any = RankGate
    own, two = layer(), torch.zeros(2, 2)
    for ranks in ((2, 1), (0, 3), (3, 8), (2, 2)):
        with pytest.raises(ArgumentError, match="ranks="):
            gate(own, ranks, two, 0.1)
    with pytest.raises(ArgumentError, match="coefficients is"):
        gate(own, (2, 4, 6), two, 0.1)
    for error in (0.0, 1.0, "x", True, math.nan):
        with pytest.raises(ArgumentError, match="error="):
            gate(own, (2, 4), two, error)
    for scales in ((), (1.0,), (1,), "x"):
        with pytest.raises(ArgumentError, match="scales="):
            gate.fit(own, inputs(), error=0.1, scales=scales)
    with pytest.raises(ArgumentError, match="inputs are empty"):
        gate.fit(own, [], error=0.1)
    with pytest.raises(ArgumentError, match="pass a FactoredLinear"):
        gate(nn.Linear(2, 2), (), torch.zeros(0, 2), 0.1)
    ring = FactoredLinear.new(8, 6, rank=2, method="tr")
    with pytest.raises(UnsupportedError, match="LowRank"):
        gate(ring, (1,), torch.zeros(1, 2), 0.1)
    with pytest.raises(ArgumentError, match="no linear layer"):
        tensorlrf.gate_ranks(nn.Sequential(nn.Linear(3, 3)), [torch.ones(2, 3)], error=0.1)
    with pytest.raises(ArgumentError, match="wrap it"):
        tensorlrf.gate_ranks(own, inputs(), error=0.1)
